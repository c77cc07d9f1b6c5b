"""Files of this library, written and read."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from groupdetr.checkpoints.native import CHECKSUM, read, save, unique_state
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


def test_the_file_opens_without_this_library_and_has_shared_modules_once(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    save(model, tmp_path / "best.safetensors", {})
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert torch.equal(file.get_tensor("queries.embedding"), model.queries.embedding)
        heads = {name.split(".")[2] for name in file.keys() if name.startswith("decoder.heads.")}  # noqa: SIM118
    assert len(model.decoder.heads) > 1
    assert heads == {"0"}


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


def test_the_error_for_a_damaged_file_names_it(model: DetectionTransformer, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    save(model, path, {})
    truncated = path.read_bytes()[:-1000]
    for content in (b"", b"\0" * 100, b"\xff" * 9000, truncated):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"broken\.safetensors"):
            read(path)


def test_every_flipped_bit_of_the_tensors_is_noticed(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    """Without the checksum, safetensors reads other numbers."""
    path = tmp_path / "best.safetensors"
    save(model, path, {})
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    generator = random.Random(0)
    for _ in range(40):
        damaged = bytearray(content)
        damaged[generator.randrange(start, len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(WeightsError, match="their checksum is wrong"):
            read(path)


def test_a_file_that_was_changed_on_purpose_has_no_checksum(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    """As the error for a wrong checksum says."""
    path = tmp_path / "best.safetensors"
    save(model, path, {"imgsz": 96})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = {name: tensor + 1 for name, tensor in read(path)[0].items()}
    save_file(state, path, metadata)
    with pytest.raises(WeightsError, match="without the entry sha256"):
        read(path)
    del metadata[CHECKSUM]
    save_file(state, path, metadata)
    assert torch.equal(read(path)[0]["queries.embedding"], model.queries.embedding + 1)
