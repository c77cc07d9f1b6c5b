"""A recipe: hyperparameters as fields, the parts of a detector as methods. Detectors inherit recipes, never modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.term import Term
from groupdetr.groups import match_groups, separately
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images


@dataclass(frozen=True)
class Recipe:
    """What every detector has. ``replace(recipe, num_groups=1)`` is the baseline."""

    preset: str = ""  # the name it is found by
    num_classes: int = 91  # COCO's category ids as they are, 0 to 90
    num_groups: int = 1  # K; the paper's default is 11
    num_queries: int = 300  # N, of a group
    num_detections: int = 100  # kept of an image
    inference_group: int | None = 0  # the group that inference keeps, None for all
    channels: int = 256
    num_heads: int = 8
    decoder_layers: int = 6
    dropout: float = 0.1
    pretrained_backbone: bool | str = False  # True: from the hub; a path: a local file
    recompute: bool = (
        False  # gradient checkpointing in encoder, decoder and backbones that are transformers
    )

    backbone_weights: ClassVar[bool] = True  # are there pretrained weights for the backbone?
    loads_backbone: ClassVar[bool] = (
        True  # can the backbone start from weights, fetched or of a file?
    )
    compete = staticmethod(separately)
    match = staticmethod(match_groups)

    def __post_init__(self) -> None:
        sizes = (
            "num_classes",
            "num_groups",
            "num_queries",
            "num_detections",
            "channels",
            "num_heads",
        )
        for name in (*sizes, "decoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.pretrained_backbone and not self.loads_backbone:
            raise ValueError(
                "this model's backbone always starts from random weights: leave out pretrained_backbone"
            )
        if self.inference_group is not None and not 0 <= self.inference_group < self.num_groups:
            raise ValueError(
                f"inference_group {self.inference_group} is not one of the {self.num_groups} groups"
            )
        if self.channels % (2 * self.num_heads):
            raise ValueError(
                f"channels ({self.channels}) must be a multiple of twice num_heads ({self.num_heads})"
            )

    def with_options(self, **options: Any) -> Self:
        """A copy with other values; an unknown field is a TypeError that names the nearest one."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in options:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise TypeError(
                    f"{self.preset or type(self).__name__} has no option {name!r}; {hint}"
                )
        return dataclasses.replace(self, **options)

    def in_chunks(self, groups_at_once: int | None) -> bool:
        """Does so many groups at a time mean more than one pass of the decoder?"""
        return groups_at_once is not None and groups_at_once < self.num_groups

    def backbone(self) -> Backbone:
        raise NotImplementedError

    def encoder(self, in_channels: list[int]) -> nn.Module:
        raise NotImplementedError

    def queries(self) -> nn.Module:
        raise NotImplementedError

    def decoder(self) -> nn.Module:
        raise NotImplementedError

    def terms(self) -> list[Term]:
        raise NotImplementedError

    def copies(self, objects: int) -> int:
        """How often each of the objects of a batch is noised; without denoising, never."""
        del objects
        return 0

    def undecayed(self, network: nn.Module) -> Iterable[str]:
        """The parameters of ``network`` that weight decay leaves alone; what the backbone says of its own besides."""
        del network
        return ()

    def noise(self, side: int) -> Images | CameraImages:
        """A batch of two that the network can see, to try it: pictures of two sizes, padded."""
        generator = torch.Generator().manual_seed(0)
        return Images.from_list(
            [torch.randn(3, height, side, generator=generator) for height in (side, side // 2)]
        )

    def build(self) -> DetectionTransformer:
        """The network with random weights; queries are drawn last, so that all else starts alike whatever K is."""
        backbone = self.backbone()
        encoder, decoder = self.encoder(backbone.channels), self.decoder()
        return DetectionTransformer(backbone, encoder, self.queries(), decoder, self)

    def criterion(self) -> SetCriterion:
        return SetCriterion(self.terms(), self.match)


def xavier_by_group(table: Tensor) -> None:
    """Xavier's rule for the matrix of every group in a table [K,.,.]."""
    for matrix in table.detach():
        nn.init.xavier_uniform_(matrix)


def xavier(modules: Iterable[nn.Module]) -> None:
    """DETR's start of a transformer: Xavier's rule for every matrix; biases and norms are left alone."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
