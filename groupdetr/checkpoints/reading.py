"""Reads a checkpoint of any container without executing anything in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupdetr.checkpoints import hub, native
from groupdetr.checkpoints.file_format import KEY, require_format
from groupdetr.checkpoints.metadata import MAX_SIZE, UNTRUSTED
from groupdetr.checkpoints.paddle_arrays import plain_arrays
from groupdetr.checkpoints.pickles import NAMESPACES, unpickle
from groupdetr.checkpoints.placeholders import Ignored
from groupdetr.console.text import quote
from groupdetr.errors import WeightsError
from groupdetr.files.kinds import HEAD, FileKind, is_run, is_safetensors, recognise
from groupdetr.files.missing import as_typed, describe_missing

Metadata = Mapping[str, Any]  # the content of a file that is not tensors
MAX_NAMES = 10  # that an error message lists
MAX_NAME_LENGTH = 200  # characters of each of them
MAX_TENSORS = 2**15  # more than any detector has
MAX_DEPTH = 3  # dicts inside of dicts in which named tensors are searched for
MAX_REPEATED = 20  # of the sizes of all tensors in memory and in the file; layers share heads
# The entries of a training script's dict that hold the weights, in the order of preference.
WEIGHTS_ENTRIES = ("model", "state_dict")
# Entries that hold tensors but no weights.
STATE_OF_TRAINING = re.compile(r"optim|sched|scaler|callback|loop|rng|hook|hub", re.IGNORECASE)
# Entries with a moving average of the weights, such as ema, model_ema and ema_state_dict.
AVERAGES = re.compile(r"(^|[._-])(ema|swa|averaged?)([._-]|$)", re.IGNORECASE)
# The entries with the arguments of a training script, the hyperparameters of Lightning, or the
# ``meta`` of mmcv and mmengine.
METADATA_ENTRIES = ("args", "hyper_parameters", "meta")
# The entries beside them in which rfdetr describes the model
MODEL_ENTRIES = ("model_name", "model_config")
# Types of tensors that can be loaded into a model as they are.
PLAIN_TYPES = frozenset(
    (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
)
# The weights in a folder of transformers, if they are one file
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
WEIGHTS_SUFFIXES = frozenset((".pth", ".pt", ".pkl", ".bin", ".safetensors", ".ckpt", ".pdparams"))
SAVE_STATE_DICT = (
    "pass a file of named tensors, the state_dict of a model; the program that wrote this file "
    'saves one by torch.save(model.state_dict(), "weights.pth")'
)
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")


@dataclass(frozen=True)
class Checkpoint:
    """The named tensors of a file, and its metadata.

    ``metadata`` holds training arguments, a configuration, or what this library wrote; {} if the
    file has none. ``where`` is the path, for error messages. ``notes`` are lines for a report about
    what the file has besides, and how it was read.
    """

    state: dict[str, Tensor]
    metadata: Metadata
    where: str
    notes: tuple[str, ...] = ()
    is_training_state: bool = False  # True for the last.pt of a run of this library
    # The keys of the other sets of weights that the file has, such as ema_model
    other_entries: tuple[str, ...] = ()

    def positive_int(self, name: str) -> int | None:
        """Return an entry of the metadata if it is a positive integer, None otherwise.

        `WeightsError` if it is larger than the size of anything can be.
        """
        value = self.metadata.get(name)
        if type(value) is not int or value < 1:
            return None
        if value > MAX_SIZE:
            raise WeightsError(
                f"{name} is {value:.6g} in the metadata, and can be at most {MAX_SIZE}",
                self.where,
                UNTRUSTED,
            )
        return value


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
            _expect_no_entry(entry, path)
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
        raise _other_file(kind, path)
    shard = SHARD.fullmatch(path.name)
    if shard is not None and int(shard[3]) > 1:
        raise WeightsError(
            f"this file is only number {int(shard[2])} of {int(shard[3])} that hold the weights",
            str(path),
            f"pass their folder: {path.parent}",
        )
    if entry is None and _is_of_transformers(path):
        # The sizes of the model and the names of its classes are beside its weights.
        return replace(_open_transformers(path.parent, [path]), where=str(path))
    if has_safetensors(path):
        _expect_no_entry(entry, path)
        return _open_safetensors(path)
    return _open_pickle(path, entry)


def _is_of_transformers(path: Path) -> bool:
    """True for the only file of weights in a folder of transformers, whose config.json says so."""
    config = path.parent / "config.json"
    if path.name not in SINGLE_FILES or not config.is_file():
        return False
    try:
        return "model_type" in _read_json(config)
    except WeightsError:
        return False


def _expect_no_entry(entry: str | None, path: Path) -> None:
    """Raise `WeightsError` if an entry is named of weights that have none."""
    if entry is not None:
        raise WeightsError(
            f"there is one set of weights here, and no entry {entry!r}",
            str(path),
            f"leave out the entry: groupdetr import {quote(path)}",
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


def has_safetensors(path: Path) -> bool:
    """Return whether the content of a file is safetensors."""
    with path.open("rb") as file:
        return is_safetensors(file.read(HEAD), path.stat().st_size)


# Folders


def _open_folder(path: Path) -> Checkpoint:
    """Read a run of this library, or a folder as transformers' `save_pretrained` writes it."""
    for best in (path / "weights/best.safetensors", path / "best.safetensors"):
        if best.is_file():
            return _open_safetensors(best)
    files = _weights_files(path)
    config = path / "config.json"
    if not files or not config.is_file():
        raise _no_checkpoint(path)
    if len(files) == 1 and has_safetensors(files[0]) and native.read_metadata(files[0]):
        return _open_safetensors(files[0])  # a folder that `groupdetr push` wrote
    return _open_transformers(path, files)


def _open_transformers(path: Path, files: Sequence[Path]) -> Checkpoint:
    """Read the configurations in a folder of transformers, and these of its files of weights."""
    metadata = _read_json(path / "config.json")
    processor = path / hub.PROCESSOR
    if processor.is_file():
        metadata[processor.name] = _read_json(processor)
    state: dict[str, Tensor] = {}
    notes: list[str] = []
    for file in files:
        part = _open_safetensors(file) if has_safetensors(file) else _open_pickle(file, None)
        state |= part.state
        notes += part.notes
    return Checkpoint(state, metadata, str(path), tuple(notes))


def _weights_files(path: Path) -> list[Path]:
    """Return the file or files of a folder of transformers that have its weights, [] if none.

    `WeightsError` if it lacks one of the files that its index names.
    """
    for name in SINGLE_FILES:
        if (path / name).is_file():
            kind = recognise(path / name)
            if kind is not None:
                raise _other_file(kind, path / name)
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
            raise _other_file(kind, file)
        files.append(file)
    return files


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. `WeightsError` if it is something else."""
    kind = recognise(path)
    if kind is not None and not kind.is_json:
        raise _other_file(kind, path)
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


def _other_file(kind: FileKind, path: Path) -> WeightsError:
    """Return the error for a file that is something else than weights."""
    return WeightsError(f"this is {kind.name}", str(path), kind.remedy)


# Files


def _open_safetensors(path: Path) -> Checkpoint:
    state, metadata = native.read(path)
    expect_plain_tensors(state, str(path))
    return Checkpoint(state, metadata, str(path))


def _open_pickle(path: Path, entry: str | None) -> Checkpoint:
    """Read tensors or arrays, alone or inside a training script's dict such as
    ``{"model": tensors, "args": Namespace}``.
    """
    content = unpickle(path)
    where = str(path)
    if isinstance(content, Ignored):
        raise WeightsError(
            f"this file holds an object of the class {content.full_name}, and not its tensors",
            where,
            SAVE_STATE_DICT,
        )
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"this file holds one {type(content).__name__} and no named tensors",
            where,
            "pass a file of named tensors: the state_dict of a model",
        )
    content = plain_arrays(content, where)
    is_training_state = _is_training_checkpoint(content)
    if is_training_state:
        stamp = content.get(KEY)
        stamp = dict(stamp) if isinstance(stamp, Mapping) else {}
        require_format(stamp, where, "train again with groupdetr train", WeightsError)
    key, named = _choose_entry(content, entry, where)
    state: dict[str, Tensor] = {}
    no_tensors: list[str] = []
    for name, value in named.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            state[name] = value
        else:
            no_tensors.append(_describe_entry(name, value))
    if no_tensors:
        raise WeightsError(
            f"these entries are not tensors: {first_names(no_tensors)}", where, SAVE_STATE_DICT
        )
    expect_plain_tensors(state, where)
    others = _other_entries(content, key, state)
    return Checkpoint(
        state,
        _find_metadata(content),
        where,
        _describe_other_entries(key, others, where),
        is_training_state,
        others,
    )


def _is_training_checkpoint(content: Mapping[object, object]) -> bool:
    """True for the ``last.pt`` of a run of this library, with or without a format number."""
    entries = {"model", "optimizer", "ema", "progress", "matched"}
    return isinstance(content.get(KEY), Mapping) or content.keys() >= entries


def _choose_entry(
    content: Mapping[object, object], entry: str | None, where: str
) -> tuple[str, Mapping[object, object]]:
    """Return the key of the weights in a training script's dict, and the weights.

    The key is "" if the dict itself is the weights. `WeightsError` if there is no ``entry`` of this
    name, or if there are several sets of weights of which none is the usual one.
    """
    states = dict(_find_states(content))
    if entry is not None:
        if entry not in states:
            raise WeightsError(
                f"the file has no weights under {entry!r}",
                where,
                f"choose one of these: {first_names(list(states)) or 'none'}",
            )
        return entry, states[entry]
    for key in WEIGHTS_ENTRIES:
        if key in states:
            return key, states[key]
        value = content.get(key)
        if isinstance(value, Mapping) and not states:
            return key, value
    are_tensors = [isinstance(value, Tensor) for value in content.values()]
    if not states or sum(are_tensors) > len(are_tensors) / 2:
        return "", content
    usual = [key for key in states if key.partition(".")[0] in WEIGHTS_ENTRIES]
    others = [key for key in states if not AVERAGES.search(key)]
    for keys in (usual, others, list(states)):
        if len(keys) == 1:
            break
        if keys:
            raise WeightsError(
                f"the file has several sets of weights: {first_names(keys)}",
                where,
                f"choose one: groupdetr import {quote(where)} --entry {quote(keys[0])} "
                f"(Python: entry={keys[0]!r})",
            )
    return keys[0], states[keys[0]]


def _find_states(
    content: Mapping[object, object], prefix: str = ""
) -> Iterator[tuple[str, Mapping[object, object]]]:
    """Yield every dict of named tensors inside a dict, with its key, such as ``ema.module``."""
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Mapping):
            continue
        key = f"{prefix}{name}"
        if STATE_OF_TRAINING.search(name) or key.count(".") >= MAX_DEPTH:
            continue
        if any(isinstance(tensor, Tensor) for tensor in value.values()):
            yield key, value
        else:
            yield from _find_states(value, f"{key}.")


def _other_entries(
    content: Mapping[object, object], chosen: str, state: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Return the keys of the weights that a file has besides the chosen ones, the ``state``.

    Another key of the same tensors is left out: rfdetr's files have them under ``model`` and, for
    Lightning, under ``state_dict``.
    """
    if not chosen:
        return ()
    addresses = {tensor.data_ptr() for tensor in state.values()}
    others = []
    for key, named in _find_states(content):
        tensors = [value for value in named.values() if isinstance(value, Tensor)]
        if key != chosen and not all(tensor.data_ptr() in addresses for tensor in tensors):
            others.append(key)
    return tuple(others)


def _describe_other_entries(chosen: str, others: Sequence[str], where: str) -> tuple[str, ...]:
    """Return a line about the weights that a file has besides the chosen ones, if it has any."""
    if not others:
        return ()
    averages = [key for key in others if AVERAGES.search(key)]
    what = " (a moving average)" if averages == list(others) else ""
    return (
        f"loaded the weights under {chosen!r}; the file has others under "
        f"{first_names([repr(key) for key in others])}{what}, which this loads instead: "
        f"groupdetr import {quote(where)} --entry {quote(others[0])}",
    )


def _describe_entry(name: object, value: object) -> str:
    """Return the name of an entry that is not a tensor, and the class of the object there."""
    text = str(name) if isinstance(name, str | int | float | bytes) else type(name).__name__
    text = text if len(text) <= MAX_NAME_LENGTH else f"{text[:MAX_NAME_LENGTH]}..."
    return f"{text} (of the class {value.full_name})" if isinstance(value, Ignored) else text


def _find_metadata(content: Mapping[object, object]) -> Metadata:
    """Return the first of `METADATA_ENTRIES` that is there, with `MODEL_ENTRIES`; {} without."""
    metadata: object = next((content[key] for key in METADATA_ENTRIES if key in content), {})
    if isinstance(metadata, NAMESPACES):
        metadata = vars(metadata)
    entries = dict(metadata) if isinstance(metadata, Mapping) else {}
    entries |= {key: content[key] for key in MODEL_ENTRIES if key in content}
    return {name: value for name, value in entries.items() if isinstance(name, str)}


def expect_plain_tensors(state: Mapping[str, Tensor], where: str) -> None:
    """Raise `WeightsError` unless all tensors are ordinary ones, with their values in the file.

    A tensor may repeat the bytes of a small file until it fills the memory, or have no bytes.
    """
    if len(state) > MAX_TENSORS:
        raise WeightsError(
            f"this file has {len(state)} tensors, and no detector has more than {MAX_TENSORS}",
            where,
            "check that it is a file of weights",
        )
    unusual: list[str] = []
    stored: dict[int, int] = {}
    total = 0
    for name, tensor in state.items():
        is_dense = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta
        if not is_dense or tensor.dtype not in PLAIN_TYPES:
            kind = "without values" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
            unusual.append(f"{name[:MAX_NAME_LENGTH]} ({kind})".replace("torch.", ""))
            continue
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        total += tensor.numel() * tensor.element_size()
    if unusual:
        raise WeightsError(
            f"these tensors are not plain numbers: {first_names(unusual)}",
            where,
            "use weights that are not quantised, sparse or divided among devices",
        )
    if total > MAX_REPEATED * sum(stored.values()) + 2**20:
        raise WeightsError(
            f"the tensors of this file have {total} bytes in memory, and {sum(stored.values())} in "
            "the file",
            where,
            UNTRUSTED,
        )


def first_names(names: Sequence[str]) -> str:
    """Return the first ten names separated by commas, and the number of all if there are more."""
    shown = []
    for name in names[:MAX_NAMES]:
        shown.append(name if len(name) <= MAX_NAME_LENGTH else f"{name[:MAX_NAME_LENGTH]}...")
    text = ", ".join(shown)
    if len(names) > MAX_NAMES:
        text += f", ... ({len(names)} in all)"
    return text
