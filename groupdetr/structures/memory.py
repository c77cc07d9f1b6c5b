"""The encoded images that object queries attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from groupdetr.ops.level_sizes import level_sizes
from groupdetr.structures.masks import MaskFeatures
from groupdetr.structures.tensor_dataclass import TensorDataclass, require


@dataclass(kw_only=True)
class Memory(TensorDataclass):
    """The output of an encoder. It has no group axis, so it is never repeated for K groups.

    The S tokens are those of all levels, one level after the other. Create it by `from_tokens`,
    which computes the valid sizes and ratios from the padding.

    >>> tokens = torch.rand(2, 6 * 8, 256)  # of two images, one level of 6 x 8 tokens
    >>> memory = groupdetr.Memory.from_tokens(
    ...     tokens=tokens,
    ...     position=torch.zeros_like(tokens),
    ...     padding=torch.zeros(2, 6 * 8, dtype=torch.bool),
    ...     shapes=((6, 8),),
    ... )
    >>> memory.levels(memory.tokens)[0].shape
    torch.Size([2, 6, 8, 256])
    """

    tokens: Tensor  # [B,S,C]
    position: Tensor  # [B,S,C] position embedding of every token
    padding: Tensor  # [B,S] bool, True where there is no image
    shapes: tuple[tuple[int, int], ...]  # (height, width) of every level; S is the sum of the areas
    padded: bool = True  # False if no image has padding
    # [B,L,2] float: width and height of the images without padding, in tokens of each of L levels
    valid_sizes: Tensor
    # [B,L,2] float: the same as a share of the padded width and height
    valid_ratios: Tensor

    def __post_init__(self) -> None:
        require(
            self.tokens.shape == self.position.shape,
            "tokens and position must have the same shape [B,S,C]",
        )
        require(self.padding.shape == self.tokens.shape[:2], "padding must be [B,S]")
        require(
            sum(h * w for h, w in self.shapes) == self.tokens.shape[1],
            "the areas of shapes must add up to S tokens",
        )

    @classmethod
    def from_tokens(
        cls,
        *,
        tokens: Tensor,
        position: Tensor,
        padding: Tensor,
        shapes: tuple[tuple[int, int], ...],
        padded: bool = True,
        **others: object,
    ) -> Self:
        """Create from what the fields of the same names describe.

        ``others`` are the further fields of a subclass.
        """
        valid_sizes, valid_ratios = compute_valid_sizes(padding, shapes)
        return cls(
            tokens=tokens,
            position=position,
            padding=padding,
            shapes=shapes,
            padded=padded,
            valid_sizes=valid_sizes,
            valid_ratios=valid_ratios,
            **others,
        )

    @property
    def key_padding_mask(self) -> Tensor | None:
        """[B,1,1,S] bool, True for tokens that no query attends to; None if nothing is padded."""
        return self.padding[:, None, None, :] if self.padded else None

    def levels(self, x: Tensor) -> list[Tensor]:
        """Split [B,S,...] into L levels [B,H,W,...]."""
        return split_levels(x, self.shapes)

    def of_layer(self, _layer: int) -> Memory:
        """Return the memory that the prediction head of a decoder layer reads.

        It is the same for all layers, unless every layer has mask features of its own.
        """
        return self


@dataclass(kw_only=True)
class PixelMemory(Memory):
    """Memory of a pixel decoder: it also has the features that masks are computed from."""

    mask_features: MaskFeatures


@dataclass(kw_only=True)
class LayerPixelMemory(PixelMemory):
    """Memory in which every decoder layer has mask features of its own, as in RF-DETR-Seg.

    `mask_features` are those of the proposals, which the masks of the encoder are computed from.
    """

    layer_mask_features: tuple[MaskFeatures, ...]  # of every decoder layer

    def of_layer(self, layer: int) -> LayerPixelMemory:
        """Return the memory with the mask features of decoder layer ``layer``, from 0."""
        return replace(self, mask_features=self.layer_mask_features[layer])


@dataclass(kw_only=True)
class SceneMemory(Memory):
    """Memory of several cameras: the tokens of all views, one view after the other, unpadded."""

    elapsed: Tensor  # [B] seconds between the two frames, as in `CameraImages`


def split_levels(x: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Split [B,S,...] into L levels [B,H,W,...] of the given heights and widths."""
    parts = x.split([h * w for h, w in shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes)]


def compute_valid_sizes(
    padding: Tensor, shapes: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Return the valid sizes and valid ratios of `Memory`, [B,L,2] float32 each.

    ``padding`` [B,S] bool.
    """
    sizes = []
    for level_padding in split_levels(padding, shapes):
        valid = ~level_padding
        width = valid[:, 0].sum(1)
        height = valid[:, :, 0].sum(1)
        sizes.append(torch.stack([width, height], -1))
    valid_sizes = torch.stack(sizes, 1).float()
    return valid_sizes, valid_sizes / level_sizes(shapes, torch.float32, valid_sizes.device)
