"""The encoded images that queries attend to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from groupdetr.structures.masks import Canvas
from groupdetr.structures.tensor_dataclass import Movable, expect


@dataclass
class Memory(Movable):
    """The encoded image: what queries look at. It has no group axis, so K groups never repeat it."""

    tokens: Tensor  # [B,S,C]
    position: Tensor  # [B,S,C] position embedding of every token
    padding: Tensor  # [B,S] bool, True where there is no image
    shapes: tuple[
        tuple[int, int], ...
    ]  # (height, width) of every level in turn; S is the sum of the areas
    padded: bool = True  # as the images are
    valid_sizes: Tensor = None  # type: ignore[assignment]  # [B,L,2] width, height in tokens of images without padding
    valid_ratios: Tensor = None  # type: ignore[assignment]  # [B,L,2] their shares of the padded width and height

    def __post_init__(self) -> None:
        if self.valid_sizes is None:
            self.valid_sizes, self.valid_ratios = self.measured()
        expect(
            self.tokens.shape == self.position.shape,
            "tokens and position must have one shape [B,S,C]",
        )
        expect(self.padding.shape == self.tokens.shape[:2], "padding must be [B,S]")
        expect(
            sum(h * w for h, w in self.shapes) == self.tokens.shape[1],
            "shapes must add up to S tokens",
        )

    @property
    def unseen(self) -> Tensor | None:
        """[B,1,1,S] bool: where nobody looks, whatever heads and queries; None where nothing is padded."""
        return self.padding[:, None, None, :] if self.padded else None

    def levels(self, x: Tensor) -> list[Tensor]:
        """[B,S,...] as L of [B,H,W,...]."""
        parts = x.split([h * w for h, w in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes)]

    def measured(self) -> tuple[Tensor, Tensor]:
        """Valid sizes and ratios, float32."""
        valid = [~padding for padding in self.levels(self.padding)]
        sizes = torch.stack(
            [torch.stack([x[:, 0].sum(1), x[:, :, 0].sum(1)], -1) for x in valid], 1
        ).float()
        whole = torch.tensor([(w, h) for h, w in self.shapes], dtype=torch.float32)
        return sizes, sizes / whole.to(sizes.device, non_blocking=True)


@dataclass
class PixelMemory(Memory):
    """With what masks are told of."""

    canvas: Canvas = None  # type: ignore[assignment]  # at a quarter of the images' size
