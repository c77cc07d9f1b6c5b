"""Reads one file of weights: safetensors, or a pickle as training scripts write it.

A training script saves a dict of which one entry, or several, hold the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from groupdetr.checkpoints import native
from groupdetr.checkpoints.checkpoint import (
    MAX_NAME_LENGTH,
    Checkpoint,
    Metadata,
    expect_plain_tensors,
    first_names,
)
from groupdetr.checkpoints.file_format import KEY, require_format
from groupdetr.checkpoints.paddle_arrays import plain_arrays
from groupdetr.checkpoints.pickles import NAMESPACES, unpickle
from groupdetr.checkpoints.placeholders import Ignored
from groupdetr.console.text import quote
from groupdetr.errors import WeightsError
from groupdetr.files.kinds import HEAD, is_safetensors

MAX_DEPTH = 3  # dicts inside of dicts in which named tensors are searched for
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
SAVE_STATE_DICT = (
    "pass a file of named tensors, the state_dict of a model; the program that wrote this file "
    'saves one by torch.save(model.state_dict(), "weights.pth")'
)


def open_weights_file(path: Path, entry: str | None = None) -> Checkpoint:
    """Read a file of weights. ``entry`` as in `reading.open_checkpoint`."""
    if not has_safetensors(path):
        return _open_pickle(path, entry)
    expect_no_entry(entry, path)
    return open_safetensors(path)


def expect_no_entry(entry: str | None, path: Path) -> None:
    """Raise `WeightsError` if an entry is named of weights that have none."""
    if entry is not None:
        raise WeightsError(
            f"there is one set of weights here, and no entry {entry!r}",
            str(path),
            f"leave out the entry: groupdetr import {quote(path)}",
        )


def has_safetensors(path: Path) -> bool:
    """Return whether the content of a file is safetensors."""
    with path.open("rb") as file:
        return is_safetensors(file.read(HEAD), path.stat().st_size)


def open_safetensors(path: Path) -> Checkpoint:
    """Read a file of safetensors."""
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
