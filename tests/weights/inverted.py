"""Weights under the names of any layout, by its own table read backwards."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from groupdetr.checkpoints.layout import Layout


def invert(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names of a layout, given those of a model of ours.

    What a layout changes after the renaming (`Layout.complete`) is not undone, except for the row
    "no object" of Mask2Former.
    """
    theirs: dict[str, Tensor] = {}
    for their_pattern, target in layout.names.items():
        targets = (target,) if isinstance(target, str) else target
        for name in state if targets else ():
            match = _compile(targets[0]).fullmatch(name)
            if match is None:
                continue
            parts = [_fill(pattern, match) for pattern in targets]
            if all(part in state for part in parts):
                their_name = _fill(their_pattern, match)
                theirs[their_name] = torch.cat([state[part] for part in parts]).detach()
    for name in ("class_predictor", "sem_seg_head.predictor.class_embed"):
        for part in ("weight", "bias"):
            if f"{name}.{part}" in theirs:
                row = state[f"decoder.heads.0.no_object.{part}"]
                theirs[f"{name}.{part}"] = torch.cat([theirs[f"{name}.{part}"], row]).detach()
    return theirs


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"))


def _fill(pattern: str, match: re.Match[str]) -> str:
    values = iter(match.groups())
    return re.sub(r"[#*]", lambda _: next(values), pattern)
