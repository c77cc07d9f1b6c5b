"""Reads a folder as transformers' `save_pretrained` writes it: configurations and weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from groupdetr.checkpoints import hub
from groupdetr.checkpoints.checkpoint import MAX_NAME_LENGTH, Checkpoint, other_file
from groupdetr.checkpoints.weights_file import open_weights_file
from groupdetr.errors import WeightsError
from groupdetr.files.kinds import recognise

CONFIG = "config.json"
# The weights, if they are one file
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


def open_transformers_folder(path: Path, files: Sequence[Path]) -> Checkpoint:
    """Read the configurations in a folder of transformers, and these of its files of weights."""
    metadata = _read_json(path / CONFIG)
    processor = path / hub.PROCESSOR
    if processor.is_file():
        metadata[processor.name] = _read_json(processor)
    state: dict[str, Tensor] = {}
    notes: list[str] = []
    for file in files:
        part = open_weights_file(file)
        state |= part.state
        notes += part.notes
    return Checkpoint(state, metadata, str(path), tuple(notes))


def weights_files(path: Path) -> list[Path]:
    """Return the file or files of a folder of transformers that have its weights, [] if none.

    `WeightsError` if it lacks one of the files that its index names.
    """
    for name in SINGLE_FILES:
        if (path / name).is_file():
            kind = recognise(path / name)
            if kind is not None:
                raise other_file(kind, path / name)
            return [path / name]
        index = path / f"{name}.index.json"
        if index.is_file():
            return _files_of_index(index)
    return []


def _files_of_index(index: Path) -> list[Path]:
    """Return the files that an index of transformers names, without the names of tensors."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(
            "the index names no files", str(index), "copy or download the folder again"
        )
    names = sorted({str(name) for name in weight_map.values()})
    files = []
    for name in names:
        # The names are data, and may not lead out of the folder.
        file = index.parent / name
        is_plain = Path(name).name == name and not set(name) & set("\0/\\:")
        if not is_plain or not file.is_file():
            what = f"the index names {len(names)} files, and one of them is not in the folder"
            remedy = "copy or download the folder again, with all of its files"
            raise WeightsError(f"{what}: {name[:MAX_NAME_LENGTH]!r}", str(index), remedy)
        kind = recognise(file)
        if kind is not None:
            raise other_file(kind, file)
        files.append(file)
    return files


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. `WeightsError` if it is something else."""
    kind = recognise(path)
    if kind is not None and not kind.is_json:
        raise other_file(kind, path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise TypeError(f"it is a {type(content).__name__}, not an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(
            f"the configuration cannot be read: {error}",
            str(path),
            "copy or download the folder again",
        ) from error
    return content


def is_of_transformers(path: Path) -> bool:
    """True for the only file of weights in a folder of transformers, whose config.json says so."""
    config = path.parent / CONFIG
    if path.name not in SINGLE_FILES or not config.is_file():
        return False
    try:
        return "model_type" in _read_json(config)
    except WeightsError:
        return False
