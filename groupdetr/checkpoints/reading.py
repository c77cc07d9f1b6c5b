"""Reads a checkpoint of any container without executing anything in it."""

from __future__ import annotations

import json
import pickle
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupdetr.checkpoints import native
from groupdetr.checkpoints.file_format import KEY, require_format
from groupdetr.checkpoints.numpy_pickle import read_arrays
from groupdetr.errors import WeightsError

# In the first bytes of a file of torch before 1.6.
TORCH_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
Metadata = Mapping[str, Any]  # the content of a file that is not tensors
MAX_NAMES = 10  # that an error message lists


class Ignored:
    """Replaces the objects that mmengine logs in a checkpoint. It accepts any state."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


# All names in a pickle of the losses and learning rates that mmengine logs.
MMENGINE_LOGS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
)


@dataclass(frozen=True)
class Checkpoint:
    """The named tensors of a file, and its metadata.

    ``metadata`` holds training arguments, a configuration, or what this library wrote; {} if the
    file has none. ``where`` is the path, for error messages.
    """

    state: dict[str, Tensor]
    metadata: Metadata
    where: str

    def positive_int(self, name: str) -> int | None:
        """Return an entry of the metadata if it is a positive integer, None otherwise."""
        value = self.metadata.get(name)
        return value if isinstance(value, int) and value > 0 else None


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Read a .pth, .pt or .pkl file, a .safetensors file, or a folder of transformers."""
    path = Path(source)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise WeightsError(
            "there is no such weights file",
            str(path),
            "pass a .pth, .pt, .pkl or .safetensors file or a folder",
        )
    return _open_safetensors(path) if _is_safetensors(path) else _open_pickle(path)


def _open_folder(path: Path) -> Checkpoint:
    """Read config.json and one file of weights, as `save_pretrained` writes them."""
    candidates = (path / "model.safetensors", path / "pytorch_model.bin")
    files = [file for file in candidates if file.is_file()]
    config = path / "config.json"
    if not files or not config.is_file():
        raise WeightsError(
            "this folder is not a checkpoint: it lacks config.json and model.safetensors or "
            "pytorch_model.bin",
            str(path),
            "pass a file instead",
        )
    try:
        metadata = dict(json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"the configuration cannot be read: {error}",
            str(config),
            "copy or download the folder again",
        ) from error
    return Checkpoint(open_checkpoint(files[0]).state, metadata, str(path))


def _is_safetensors(path: Path) -> bool:
    """True if the content is safetensors: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _open_safetensors(path: Path) -> Checkpoint:
    state, metadata = native.read(path)
    return Checkpoint(state, metadata, str(path))


def _open_pickle(path: Path) -> Checkpoint:
    """Read tensors or arrays, alone or inside a training script's dict such as
    ``{"model": tensors, "args": Namespace}``.
    """
    content = _unpickle(path)
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"this file holds one {type(content).__name__} and no named tensors",
            str(path),
            "pass a file of named tensors: the state_dict of a model",
        )
    if _is_training_checkpoint(content):
        remedy = "train again with groupdetr train"
        require_format(content.get(KEY, {}), str(path), remedy, WeightsError)
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    for name, value in _find_tensors(content).items():
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            others.append(str(name))
    if others:
        raise WeightsError(
            f"these entries are not tensors: {first_names(others)}",
            str(path),
            "pass a file of named tensors: the state_dict of a model",
        )
    return Checkpoint(tensors, _find_metadata(content), str(path))


def _is_training_checkpoint(content: Mapping[str, object]) -> bool:
    """True for the ``last.pt`` of a run of this library, with or without a format number."""
    without_number = {"model", "optimizer", "ema", "progress", "matched"}
    return isinstance(content.get(KEY), Mapping) or content.keys() == without_number


def _find_tensors(content: Mapping[str, object]) -> Mapping[str, object]:
    """Return the entry of a training script's dict that holds the tensors, or all of it."""
    for key in ("model", "state_dict"):
        value = content.get(key)
        if isinstance(value, Mapping):
            return value
    return content


def _find_metadata(content: Mapping[str, object]) -> Metadata:
    """Return the training arguments, or the ``meta`` of mmcv and mmengine; {} without them."""
    metadata = content.get("args", content.get("meta", {}))
    if isinstance(metadata, Namespace):
        metadata = vars(metadata)
    return dict(metadata) if isinstance(metadata, Mapping) else {}


def _unpickle(path: Path) -> object:
    """Unpickle tensors or arrays, plain values, and a Namespace of them.

    Anything else is not executed; the `WeightsError` names it.
    """
    allowed: list[Any] = [Namespace]
    for name in MMENGINE_LOGS:
        allowed.append((Ignored, name))
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(allowed):
            if _is_numpy_pickle(file.peek(32)):
                return read_arrays(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"this file contains code or is damaged: {_first_reason(error)}",
            str(path),
            "nothing was executed; get the weights as .safetensors, or a new copy from a source "
            "that you trust",
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise WeightsError(
            f"this file is damaged: {_first_reason(error)}", str(path), "copy or download it again"
        ) from error


def _is_numpy_pickle(head: bytes) -> bool:
    """True if the content is a plain pickle and not one of torch's."""
    return head.startswith(pickle.PROTO) and TORCH_MAGIC not in head[:32]


def _first_reason(error: Exception) -> str:
    """Return the line of torch's long message that names what is not supported."""
    lines = str(error).splitlines() or [type(error).__name__]
    for line in lines:
        if "nsupported" in line:
            return line.strip()
    return lines[0]


def first_names(names: Sequence[str]) -> str:
    """Return the first ten names separated by commas, and the number of all if there are more."""
    text = ", ".join(names[:MAX_NAMES])
    if len(names) > MAX_NAMES:
        text += f", ... ({len(names)} in all)"
    return text
