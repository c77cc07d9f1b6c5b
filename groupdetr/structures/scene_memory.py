"""The encoded images of several cameras."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from groupdetr.structures.memory import Memory


@dataclass
class SceneMemory(Memory):
    """Of all views, one after the other; nothing is padded."""

    elapsed: Tensor = None  # type: ignore[assignment]  # [B] as the images'
