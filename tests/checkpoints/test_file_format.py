"""The format number of ``best.safetensors`` and ``last.pt``. Other formats are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import groupdetr
from groupdetr.checkpoints.file_format import FORMAT, KEY
from groupdetr.checkpoints.native import read, save, unique_state
from groupdetr.engine.checkpoint import CheckpointState, TrainingProgress
from groupdetr.errors import UsageError, WeightsError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.weights.loading import load_weights

NEWER = (
    f"this file has format {FORMAT + 1}, and groupdetr {groupdetr.__version__} reads "
    f"format {FORMAT}\n.*\ninstall the version of groupdetr that wrote it: the file says 9.8.7"
)
WITHOUT_NUMBER = r"written by groupdetr before 0\.1\.0 \(it has no format number\)\n.*\n"


def training_state(model: DetectionTransformer) -> CheckpointState:
    return CheckpointState(
        model, torch.optim.SGD(model.parameters(), lr=0.1), None, TrainingProgress(step=3)
    )


# best.safetensors


def write_header(model: DetectionTransformer, path: Path, metadata: dict[str, Any] | None) -> None:
    """Write weights with any metadata of this library, or with none for None."""
    header = {"format": "pt"}
    if metadata is not None:
        header[KEY] = json.dumps(metadata)
    tensors = {name: value.detach().contiguous() for name, value in unique_state(model).items()}
    save_file(tensors, path, header)


def test_weights_carry_the_format_and_the_version(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    save(model, tmp_path / "best.safetensors", {"imgsz": 96})
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()[KEY])
    assert metadata == {"imgsz": 96, "format": FORMAT, "version": groupdetr.__version__}


def test_weights_of_a_newer_format_are_refused(model: DetectionTransformer, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    write_header(model, path, {"format": FORMAT + 1, "version": "9.8.7"})
    with pytest.raises(WeightsError, match=NEWER):
        read(path)
    with pytest.raises(WeightsError, match=NEWER):
        load_weights(model, path)


@pytest.mark.parametrize("metadata", [{}, {"recipe": {"num_groups": 3}, "imgsz": 96}])
def test_weights_without_a_format_number_are_refused(
    metadata: dict[str, Any], model: DetectionTransformer, tmp_path: Path
) -> None:
    path = tmp_path / "best.safetensors"
    write_header(model, path, metadata)
    with pytest.raises(WeightsError, match=WITHOUT_NUMBER + "train again .* groupdetr import"):
        read(path)


def test_weights_of_another_program_need_no_format_number(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    write_header(model, path, None)
    state, metadata = read(path)
    assert metadata == {}
    assert state.keys() == unique_state(model).keys()


# last.pt


def test_a_training_state_is_restored(model: DetectionTransformer, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    training_state(model).save(path)
    stamp = torch.load(path, weights_only=True)[KEY]
    assert stamp == {"format": FORMAT, "version": groupdetr.__version__}
    restored = training_state(model)
    restored.progress = TrainingProgress()
    restored.load(path)
    assert restored.progress == TrainingProgress(step=3)


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        pytest.param({"format": FORMAT + 1, "version": "9.8.7"}, NEWER, id="newer"),
        pytest.param(None, WITHOUT_NUMBER, id="without a number"),
    ],
)
def test_a_training_state_of_another_format_is_refused(
    stamp: dict[str, Any] | None, message: str, model: DetectionTransformer, tmp_path: Path
) -> None:
    """By `CheckpointState.load` as well as by `load_weights`, which accepts a ``last.pt``, too."""
    path = tmp_path / "last.pt"
    training_state(model).save(path)
    content = torch.load(path, weights_only=True)
    del content[KEY]
    if stamp is not None:
        content[KEY] = stamp
    torch.save(content, path)
    with pytest.raises(UsageError, match=message) as refused:
        training_state(model).load(path)
    assert not isinstance(refused.value, WeightsError)
    with pytest.raises(WeightsError, match=message):
        load_weights(model, path)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), {"model": {}}])
def test_a_file_that_is_no_training_state_is_refused(
    content: object, model: DetectionTransformer, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(UsageError, match=r"last\.pt"):
        training_state(model).load(tmp_path / "last.pt")
