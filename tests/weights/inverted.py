"""Weights under the names of any layout, by its own table read backwards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from groupdetr.checkpoints.layout import Layout, OfGroup, OfGroups, TableEntry, Transposed


def invert(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names of a layout, given those of a model of ours.

    What a layout changes after the renaming (`Layout.complete`) is not undone, except for the row
    "no object" of Mask2Former and of PaddleDetection's label embeddings.
    """
    theirs: dict[str, Tensor] = {}
    for their_pattern, entry in layout.names.items():
        targets = _our_names(entry)
        for name in state if targets else ():
            match = _compile(targets[0]).fullmatch(name)
            if match is None:
                continue
            parts = [_fill(pattern, match.groups()) for pattern in targets]
            if not all(part in state for part in parts):
                continue
            if not isinstance(entry, OfGroup | OfGroups):
                their_name = _fill(their_pattern, match.groups())
                # Of several entries that fit, a name is read by the first one.
                theirs.setdefault(their_name, _joined([state[part] for part in parts], entry))
                continue
            for group in range(len(state[name])):
                number = group - entry.first if isinstance(entry, OfGroups) else 0
                if number < 0 or (isinstance(entry, OfGroup) and group != entry.group):
                    continue
                # The number of the group is the first one of their names.
                pattern = their_pattern
                if isinstance(entry, OfGroups):
                    pattern = pattern.replace("#", str(number), 1)
                rows = [state[part][group] for part in parts]
                theirs[_fill(pattern, match.groups())] = _joined(rows, entry.names)
    for name in theirs:
        if "denoising_class_embed" in name:
            theirs[name] = theirs[name][:-1]
    for name in ("class_predictor", "sem_seg_head.predictor.class_embed"):
        for part in ("weight", "bias"):
            if f"{name}.{part}" in theirs:
                row = state[f"decoder.heads.0.no_object.{part}"]
                theirs[f"{name}.{part}"] = torch.cat([theirs[f"{name}.{part}"], row]).detach()
    return theirs


def _our_names(entry: TableEntry) -> tuple[str, ...]:
    if isinstance(entry, OfGroup | OfGroups | Transposed):
        return _our_names(entry.names)
    return (entry,) if isinstance(entry, str) else entry


def _joined(parts: Sequence[Tensor], entry: TableEntry) -> Tensor:
    """Return their tensor of several of ours."""
    # Counters of batch norms have no axis.
    tensor = (torch.cat([*parts]) if len(parts) > 1 else parts[0]).detach()
    return tensor.T if isinstance(entry, Transposed) and tensor.ndim == 2 else tensor


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"))


def _fill(pattern: str, values: Sequence[str]) -> str:
    remaining = iter(values)
    return re.sub(r"[#*]", lambda _: next(remaining), pattern)
