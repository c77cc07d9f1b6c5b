"""Files of this library, written and read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from groupdetr.checkpoints.native import read, save, unique_state
from groupdetr.errors import WeightsError
from groupdetr.files.writing import WriteError
from groupdetr.modeling.detr import DetectionTransformer


def test_saved_weights_are_read_bit_for_bit(model: DetectionTransformer, tmp_path: Path) -> None:
    metadata = {
        "recipe": {"num_groups": 3},
        "categories": [[7, "Katze"], [90, "Hündin"]],
        "imgsz": 96,
    }
    save(model, tmp_path / "best.safetensors", metadata)
    state, metadata_read = read(tmp_path / "best.safetensors")
    assert metadata_read == metadata
    assert state.keys() == unique_state(model).keys()
    assert all(torch.equal(state[name], value) for name, value in unique_state(model).items())


def test_a_shared_module_is_saved_once(model: DetectionTransformer, tmp_path: Path) -> None:
    save(model, tmp_path / "best.safetensors", {})
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        heads = {name.split(".")[2] for name in file.keys() if name.startswith("decoder.heads.")}  # noqa: SIM118
    assert len(model.decoder.heads) > 1
    assert heads == {"0"}


def test_the_file_opens_without_this_library(model: DetectionTransformer, tmp_path: Path) -> None:
    save(model, tmp_path / "best.safetensors", {})
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert torch.equal(file.get_tensor("queries.embedding"), model.queries.embedding)


def test_a_save_that_fails_leaves_the_previous_file(
    model: DetectionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.safetensors"
    save(model, path, {"step": 1})

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match="no space left"):
        save(model, path, {"step": 2})
    assert read(path)[1] == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["best.safetensors"]


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 100, b"\xff" * 9000])
def test_the_error_for_a_damaged_file_names_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"broken\.safetensors"):
        read(path)


def test_the_error_for_a_truncated_file_names_it(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    path = tmp_path / "truncated.safetensors"
    save(model, path, {})
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"truncated\.safetensors"):
        read(path)
