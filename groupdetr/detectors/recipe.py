"""Base class of all detectors' recipes: hyperparameters as fields, parts of the network as methods.

A detector that extends another one inherits from its recipe. Network modules are not inherited.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.term import Term
from groupdetr.errors import UsageError
from groupdetr.groups import GROUP_ATTENTIONS, MATCHES
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.registry import (
    RESNET50,
    BackboneOptions,
    build_backbone,
    can_load,
)
from groupdetr.modeling.decoder import Decoder
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.encoders.encoder import Encoder
from groupdetr.modeling.frozen import trained_batch_norms
from groupdetr.modeling.model_recipe import ModelRecipe
from groupdetr.modeling.outline import without_memory
from groupdetr.modeling.queries.query_source import QuerySource
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images

# Of feature maps. 12 and 14 are sides of patches of Vision Transformers.
STRIDES = (1, 2, 4, 8, 12, 14, 16, 32, 64, 128)
MANY = 100_000  # more of anything is a mistake, for which no machine has the memory
# The smallest and the largest value of fields, those of the detectors that inherit included.
RANGES: dict[str, tuple[float, float]] = {
    "num_classes": (1, MANY),
    "num_groups": (1, MANY),
    "num_queries": (1, MANY),
    "num_detections": (1, MANY),
    "channels": (1, MANY),
    "num_heads": (1, MANY),
    "decoder_layers": (1, 1000),
    "encoder_layers": (1, 1000),
    "dim_feedforward": (1, MANY),
    "encoder_dim_feedforward": (1, MANY),
    "dropout": (0, 0.99),
    "frozen_stages": (-1, 100),
    "temperature": (1e-6, 1e12),
    "eps": (1e-12, 0.5),
    "offset": (-10, 10),
    "num_patterns": (0, MANY),
    "num_denoising": (0, MANY),
    "denoising_groups": (1, MANY),
    "label_noise_ratio": (0, 1),
    "box_noise_scale": (0, 10),
    "num_levels": (1, 100),
    "num_points": (1, 1000),
    "num_samples": (1, 10_000_000),
    "grid_mask": (0, 1),
    "cross_attention_heads": (1, MANY),
    "vit_width": (1, MANY),
    "vit_depth": (1, 1000),
    "vit_heads": (1, MANY),
    "num_windows": (1, 1000),
    "position_grid": (1, 10_000),
    "drop_path": (0, 0.99),
    "pixels_per_point": (1, 10_000_000),
}


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
    # The function of `groupdetr.groups` for self-attention, by its name. The default is that of
    # Group DETR; Table 7 has another.
    group_attention: str = "attend_within_groups"
    # The function of `groupdetr.groups` that assigns objects to queries, by its name
    match: str = "match_groups"
    channels: int = 256  # C, the width of queries and tokens
    num_heads: int = 8  # of every attention
    decoder_layers: int = 6  # every layer has a prediction and a loss
    dropout: float = 0.1  # the share of values that training sets to zero
    # A name in `groupdetr.modeling.backbones.registry`, or any network of timm with feature maps
    backbone: str = RESNET50
    # True: downloaded weights; a path: weights in a local file; False: random weights
    pretrained_backbone: bool | str = False
    strides: tuple[int, ...] = (32,)  # of the backbone's maps that are used, from fine to coarse
    # Stages of the backbone that are not trained, as in mmdetection: -1 none, 0 the stem, 1 the
    # stem and the first stage (as in DETR), and so on
    frozen_stages: int = 1
    # True: the batch norms of the backbone, and those of a projector behind it, have fixed
    # statistics, scale and shift, as in DETR
    freeze_norms: bool = True
    # gradient checkpointing in encoder, decoder, and backbones that are transformers
    recompute: bool = False
    # True: images are resized to squares, and do not keep their aspect ratio
    square_images: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        self._check_choices()
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
        self._check_ranges()
        if self.pretrained_backbone and not can_load(self.backbone):
            raise ValueError(
                f"the backbone {self.backbone} always starts from random weights: "
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

    def choices(self) -> dict[str, Mapping[str, Callable[..., Any]]]:
        """Return the fields that name a function: field -> name -> function."""
        return {"group_attention": GROUP_ATTENTIONS, "match": MATCHES}

    def _check_types(self) -> None:
        """Raise `ValueError` for a value of another type than that of its field.

        Options come from the command line and from files, where any value can be written.
        """
        for name, allowed in field_types(type(self)).items():
            value = getattr(self, name)
            # JSON and YAML have lists for tuples.
            if tuple in allowed and isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            elif name not in self.choices() and not _has_type(value, allowed):
                names = " or ".join(kind.__name__ for kind in allowed)
                raise ValueError(f"{name} must be {names}, not {value!r}")

    def _check_ranges(self) -> None:
        """Raise `ValueError` for a number that is out of the range of its field."""
        for name in field_types(type(self)):
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, not {value}")
            low, high = RANGES.get(name, (-math.inf, math.inf))
            if name in RANGES and value is not None and not low <= value <= high:
                raise ValueError(f"{name} must be from {low} to {high}, not {value}")
        self._check_strides()

    def _check_strides(self) -> None:
        """Raise `UsageError` unless the detector can use feature maps of these strides."""
        fewest, most = self.num_maps
        strides = list(self.strides)
        are_known = all(type(stride) is int and stride in STRIDES for stride in strides)
        if are_known and strides == sorted(set(strides)) and fewest <= len(strides) <= most:
            return
        number = str(most) if fewest == most else f"{fewest} to {most}"
        remedy = f"choose from {list(STRIDES)}"
        usual = list(type(self).strides[:most])
        if len(usual) >= fewest:
            remedy += f", for example strides={usual}"
        raise UsageError(
            f"{self.preset or type(self).__name__} needs the strides of {number} feature "
            f"{'map' if most == 1 else 'maps'} of its backbone, from fine to coarse, not {strides}",
            remedy=remedy,
        )

    def _check_choices(self) -> None:
        """Replace functions by their names. `ValueError` for the name of no known function."""
        for field, functions in self.choices().items():
            value = getattr(self, field)
            for name, function in functions.items():
                if value is function:
                    object.__setattr__(self, field, name)
            if getattr(self, field) not in list(functions):
                known = ", ".join(functions)
                raise ValueError(f"{field} must be one of {known}, not {value!r}")

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

    @property
    def num_maps(self) -> tuple[int, int]:
        """The smallest and the largest number of feature maps that the encoder takes."""
        return 1, len(STRIDES)

    @property
    def size_divisor(self) -> int:
        """Pixels of which both sides of an image must be a multiple. Images are resized to that.

        A backbone that pads images itself needs no multiple: see `BackboneOptions.multiple`.
        """
        return 1

    # The parts of the network. Each method returns a new part with random weights.

    def build_backbone(self) -> Backbone:
        """Return the network that computes feature maps from images."""
        return build_backbone(self.backbone, self.backbone_options())

    def backbone_options(self) -> BackboneOptions:
        """Return what this detector needs of its backbone."""
        return BackboneOptions(
            pretrained=self.pretrained_backbone,
            strides=self.strides,
            dilated=False,
            frozen_stages=self.frozen_stages,
            freeze_norms=self.freeze_norms,
            recompute=self.recompute,
            multiple=1,
            augment=None,
            bgr=False,
            channels=self.channels,
        )

    def build_encoder(self, in_channels: list[int]) -> Encoder:
        """Return the encoder of feature maps with ``in_channels``, from fine to coarse."""
        raise NotImplementedError

    def build_queries(self) -> QuerySource:
        """Return the source of the object queries."""
        raise NotImplementedError

    def build_decoder(self) -> Decoder:
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
        backbone = self.build_backbone()
        encoder = self.build_encoder(backbone.channels)
        decoder = self.build_decoder()
        queries = self.build_queries()
        return DetectionTransformer(backbone, encoder, queries, decoder, self)

    def criterion(self) -> SetCriterion:
        """Return the set criterion, with the terms and the matching of this detector."""
        return SetCriterion(self.terms(), MATCHES[self.match])

    # Values that training needs

    def trains_batch_norms(self, freeze: Sequence[str] = ()) -> bool:
        """True if batch norms are trained when the parts ``freeze`` of the network are frozen.

        The result of a step then depends on the size of its micro-batches, because the statistics
        are those of a micro-batch.
        """
        with without_memory():
            model = dataclasses.replace(self, pretrained_backbone=False).build()
        if freeze:
            model.freeze(freeze)
        return bool(trained_batch_norms(model))

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


@cache
def field_types(recipe_class: type[Recipe]) -> dict[str, tuple[type, ...]]:
    """Return the types of every field of a recipe, such as ``{"dropout": (float,)}``."""
    hints = get_type_hints(recipe_class)
    types: dict[str, tuple[type, ...]] = {}
    for field in dataclasses.fields(recipe_class):
        hint = hints[field.name]
        alternatives = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        types[field.name] = tuple(get_origin(kind) or kind for kind in alternatives)
    return types


def _has_type(value: object, allowed: tuple[type, ...]) -> bool:
    """True if a value has one of the types. A whole number is also a float, a bool is neither."""
    if isinstance(value, bool):
        return bool in allowed
    if isinstance(value, int) and float in allowed:
        return True
    return isinstance(value, allowed)


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
