"""Reads a checkpoint of any container without executing anything in it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from groupdetr.checkpoints import hub, native
from groupdetr.checkpoints.checkpoint import Checkpoint, first_names, other_file
from groupdetr.checkpoints.transformers_folder import (
    CONFIG,
    is_of_transformers,
    open_transformers_folder,
    weights_files,
)
from groupdetr.checkpoints.weights_file import (
    expect_no_entry,
    has_safetensors,
    open_safetensors,
    open_weights_file,
)
from groupdetr.console.text import quote
from groupdetr.errors import WeightsError
from groupdetr.files.kinds import is_run, recognise
from groupdetr.files.missing import as_typed, describe_missing

WEIGHTS_SUFFIXES = frozenset((".pth", ".pt", ".pkl", ".bin", ".safetensors", ".ckpt", ".pdparams"))
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")


def open_checkpoint(source: str | Path, entry: str | None = None) -> Checkpoint:
    """Read a .pth, .pt, .pkl, .pdparams or .safetensors file, a folder, or a model on the hub.

    A folder is one of transformers, with all its files of weights, or a run of this library, whose
    best weights are read. ``entry`` selects one of several sets of weights in a file by the key of
    its dict, such as ``ema`` or ``ema.module``. A model on the Hugging Face hub is ``owner/name``
    or ``owner/name@revision``; it is downloaded unless it is in the cache.

    `WeightsError` if there is no such file, if it is something else than weights, or damaged.
    """
    path = Path(source)
    try:
        model = hub.model_named(source)
        if model is not None:
            return replace(open_checkpoint(hub.download(model), entry), where=str(model))
        if path.is_dir():
            expect_no_entry(entry, path)
            return _open_folder(path)
        if not path.is_file():
            raise _no_such_file(source)
        return _open_file(path, entry)
    except (OSError, ValueError) as error:  # ValueError: the path has a NUL character
        raise WeightsError(
            f"this cannot be read: {getattr(error, 'strerror', None) or error}",
            str(source),
            "check the path and its permissions",
        ) from error


def _no_such_file(source: str | Path) -> WeightsError:
    """Return the error for an argument that is neither a path nor a model on the hub."""
    what, remedy = describe_missing(source)
    remedy = remedy or "pass a .pth, .pt, .pkl or .safetensors file or a folder"
    if name := hub.name_with_revision(source):
        remedy = f"{remedy}; a model on the Hugging Face hub is {name}"
    return WeightsError(what or "there is no such weights file", as_typed(source), remedy)


def _open_file(path: Path, entry: str | None) -> Checkpoint:
    kind = recognise(path)
    if kind is not None:
        raise other_file(kind, path)
    shard = SHARD.fullmatch(path.name)
    if shard is not None and int(shard[3]) > 1:
        raise WeightsError(
            f"this file is only number {int(shard[2])} of {int(shard[3])} that hold the weights",
            str(path),
            f"pass their folder: {path.parent}",
        )
    if entry is None and is_of_transformers(path):
        # The sizes of the model and the names of its classes are beside its weights.
        return replace(open_transformers_folder(path.parent, [path]), where=str(path))
    return open_weights_file(path, entry)


def _open_folder(path: Path) -> Checkpoint:
    """Read a run of this library, or a folder as transformers' `save_pretrained` writes it."""
    for best in (path / "weights/best.safetensors", path / "best.safetensors"):
        if best.is_file():
            return open_safetensors(best)
    files = weights_files(path)
    config = path / CONFIG
    if not files or not config.is_file():
        raise _no_checkpoint(path)
    if len(files) == 1 and has_safetensors(files[0]) and native.read_metadata(files[0]):
        return open_safetensors(files[0])  # a folder that `groupdetr push` wrote
    return open_transformers_folder(path, files)


def _no_checkpoint(path: Path) -> WeightsError:
    """Return the error for a folder that has no weights that can be read."""
    if is_run(path):
        return WeightsError(
            "this run has no weights yet: they are written by its first evaluation",
            str(path),
            f"continue it with groupdetr train --resume {quote(path)}",
        )
    files = sorted(file.name for file in path.iterdir() if file.is_file())
    if ".metadata" in files and any(name.endswith(".distcp") for name in files):
        return WeightsError(
            "this is a distributed checkpoint of torch, which several processes have written",
            str(path),
            "convert it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{quote(path)} weights.pth",
        )
    if "zero_to_fp32.py" in files:
        return WeightsError(
            "this is a checkpoint of DeepSpeed, which several processes have written",
            str(path),
            f"convert it with its own program: python {quote(path / 'zero_to_fp32.py')} "
            f"{quote(path)} weights.pth",
        )
    weights = [name for name in files if Path(name).suffix in WEIGHTS_SUFFIXES]
    return WeightsError(
        "this folder is not a checkpoint: it lacks config.json and model.safetensors or "
        "pytorch_model.bin",
        str(path),
        f"pass one of its files: {first_names(weights)}" if weights else "pass a file instead",
    )


def with_ending(path: Path, ending: str) -> Path:
    """Return a path with ``ending`` in the place of the ending of a file of weights.

    What follows any other dot is a part of the name, such as the version of a model.

    >>> with_ending(Path("rf-detr-1.4.pth"), ".onnx").name
    'rf-detr-1.4.onnx'
    >>> with_ending(Path("rf-detr-1.4"), ".onnx").name
    'rf-detr-1.4.onnx'
    """
    is_weights = path.suffix.lower() in WEIGHTS_SUFFIXES
    return path.with_name((path.stem if is_weights else path.name) + ending)
