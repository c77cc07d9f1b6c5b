"""Base class of all detectors' recipes: hyperparameters as fields, parts of the network as methods.

A detector that extends another one inherits from its recipe. Network modules are not inherited.
"""

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
from groupdetr.groups import attend_within_groups, match_groups
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.decoder import Decoder
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.encoders.encoder import Encoder
from groupdetr.modeling.model_recipe import ModelRecipe
from groupdetr.modeling.queries.query_source import QuerySource
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images


@dataclass(frozen=True)
class Recipe(ModelRecipe):
    """The hyperparameters that every detector has, and how its network is built from them.

    ``dataclasses.replace(recipe, num_groups=1)`` is the baseline of a detector with groups.
    """

    preset: str = ""  # the name in `groupdetr.experiments`
    num_classes: int = 91  # COCO's category ids are used as they are, 0 to 90
    num_groups: int = 1  # K; the paper's default is 11
    num_queries: int = 300  # N, the queries of a group
    num_detections: int = 100  # the largest number of detections in an image
    inference_group: int | None = 0  # the group that runs at inference; None for all groups
    channels: int = 256
    num_heads: int = 8
    decoder_layers: int = 6
    dropout: float = 0.1
    # True: downloaded weights; a path: weights in a local file; False: random weights
    pretrained_backbone: bool | str = False
    # gradient checkpointing in encoder, decoder, and backbones that are transformers
    recompute: bool = False

    # True if pretrained weights of the backbone can be downloaded
    has_backbone_weights: ClassVar[bool] = True
    # True if the backbone can be initialised with weights, downloaded or from a file
    can_load_backbone: ClassVar[bool] = True
    # The functions of `groupdetr.groups` that this detector uses: those of Group DETR.
    group_attention = staticmethod(attend_within_groups)
    match = staticmethod(match_groups)

    def __post_init__(self) -> None:
        for name in (
            "num_classes",
            "num_groups",
            "num_queries",
            "num_detections",
            "channels",
            "num_heads",
            "decoder_layers",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.pretrained_backbone and not self.can_load_backbone:
            raise ValueError(
                "this model's backbone always starts from random weights: "
                "leave out pretrained_backbone"
            )
        if self.inference_group is not None and not 0 <= self.inference_group < self.num_groups:
            raise ValueError(
                f"inference_group {self.inference_group} is not one of the {self.num_groups} groups"
            )
        if self.channels % (2 * self.num_heads):
            raise ValueError(
                f"channels ({self.channels}) must be a multiple of twice num_heads "
                f"({self.num_heads})"
            )

    def with_options(self, **options: Any) -> Self:
        """Return a copy with other values of some fields.

        `TypeError` for a field that does not exist; it names the most similar one.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in options:
            if name not in known:
                similar = get_close_matches(name, known, n=1)
                hint = f"did you mean {similar[0]}?" if similar else f"known: {', '.join(known)}"
                raise TypeError(
                    f"{self.preset or type(self).__name__} has no option {name!r}; {hint}"
                )
        return dataclasses.replace(self, **options)

    def needs_chunks(self, groups_at_once: int | None) -> bool:
        """True if ``groups_at_once`` groups at a time need more than one pass of the decoder."""
        return groups_at_once is not None and groups_at_once < self.num_groups

    # The parts of the network. Each method returns a new part with random weights.

    def backbone(self) -> Backbone:
        """Return the network that computes feature maps from images."""
        raise NotImplementedError

    def encoder(self, in_channels: list[int]) -> Encoder:
        """Return the encoder of feature maps with ``in_channels``, from fine to coarse."""
        raise NotImplementedError

    def queries(self) -> QuerySource:
        """Return the source of the object queries."""
        raise NotImplementedError

    def decoder(self) -> Decoder:
        """Return the decoder with its prediction heads."""
        raise NotImplementedError

    def terms(self) -> list[Term]:
        """Return the terms of matching cost and loss, each with its weights."""
        raise NotImplementedError

    def build(self) -> DetectionTransformer:
        """Return the network with random weights.

        The query source draws its random numbers last. Encoder and decoder therefore start with
        the same weights whatever the number of groups is.
        """
        backbone = self.backbone()
        encoder = self.encoder(backbone.channels)
        decoder = self.decoder()
        queries = self.queries()
        return DetectionTransformer(backbone, encoder, queries, decoder, self)

    def criterion(self) -> SetCriterion:
        """Return the set criterion, with the terms and the matching of this detector."""
        return SetCriterion(self.terms(), self.match)

    # Values that training needs

    def copies(self, objects: int) -> int:
        """Return how many noised copies of every object a group has.

        ``objects`` is the largest number of objects in an image of the batch. It is 0 for a
        detector without denoising.
        """
        return 0

    def no_weight_decay(self, network: nn.Module) -> Iterable[str]:
        """Return the names of the parameters of ``network`` that have no weight decay.

        Those of the backbone are not listed here; see `Backbone.has_weight_decay`.
        """
        return ()

    def example_images(self, side: int) -> Images | CameraImages:
        """Return two images of noise that the network accepts, of different sizes, padded."""
        generator = torch.Generator().manual_seed(0)
        images = []
        for height in (side, side // 2):
            images.append(torch.randn(3, height, side, generator=generator))
        return Images.from_list(images)


def init_xavier(modules: Iterable[nn.Module]) -> None:
    """Initialise every matrix by Xavier's rule, as DETR does in its transformer.

    Biases and norms are not changed.
    """
    for module in modules:
        for parameter in module.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)


def init_xavier_by_group(table: Tensor) -> None:
    """Initialise the matrix of every group in a table [K,.,.] by Xavier's rule."""
    for matrix in table.detach():
        nn.init.xavier_uniform_(matrix)
