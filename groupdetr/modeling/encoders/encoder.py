"""The interface of encoders, and gradient checkpointing of their layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groupdetr.structures.memory import Memory


class Encoder(nn.Module, ABC):
    """Feature maps of a backbone, and the images that they come from -> `Memory`."""

    @abstractmethod
    def forward(self, features: list[Tensor], images: Any) -> Memory:
        """``features`` from fine to coarse, ``images`` `Images` or `CameraImages`."""

    def set_position_embedding(self, temperature: float, offset: float) -> None:
        """Change the position embedding of the image. See `image_embedding`.

        Published weights of one detector differ in it, so that loading weights may change it.
        NotImplementedError if the encoder has no such position embedding.
        """
        raise NotImplementedError(f"{type(self).__name__} has no position embedding of the image")


def run_layer(layer: nn.Module, *inputs: Any, recompute: bool) -> Tensor:
    """Run one layer. With ``recompute``, the backward pass computes its activations again."""
    if recompute:
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
