"""The backbone of a detector as transformers builds it: a network of timm, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor

from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.recipe import Recipe
from groupdetr.errors import UsageError
from groupdetr.modeling.backbones.registry import LW_DETR_VIT, RESNET50, WINDOWED_DINOV2
from groupdetr.modeling.backbones.timm_structure import DILATED_STRIDE, examine
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.images import IMAGENET_MEAN, IMAGENET_STD

REMEDY = "train one that fits: groupdetr train DATA --backbone resnet50.tv_in1k"


@dataclass(frozen=True)
class HuggingFaceBackbone:
    """The entries of config.json about a backbone, and the constants of its images."""

    config: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # Tensors of layers behind the last map, by timm's names. timm builds them, and nothing uses
    # them.
    unused: tuple[str, ...]


def huggingface_backbone(model: DetectionTransformer, where: str) -> HuggingFaceBackbone:
    """Return the backbone of a detector as transformers builds it. ``where`` is the file.

    `UsageError` if transformers cannot build it from the name of one of timm's networks.
    """
    recipe = model.recipe
    assert isinstance(recipe, Recipe)
    if recipe.backbone in (LW_DETR_VIT, WINDOWED_DINOV2):
        # The configuration of the detector has the sizes of this one, too.
        return HuggingFaceBackbone({}, IMAGENET_MEAN, IMAGENET_STD, ())
    name, dilated = recipe.backbone, bool(getattr(recipe, "dilated", False))
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UsageError(
            f"the backbone {name} is this library's own, and transformers builds only timm's",
            where,
            REMEDY,
        )
    strides = (DILATED_STRIDE,) if dilated else recipe.strides
    structure = examine(name, strides, dilated)
    if structure.multiple > 1:
        raise UsageError(
            f"the backbone {name} needs images whose sides are multiples of {structure.multiple} "
            "pixels, and transformers does not pad them",
            where,
            REMEDY,
        )
    # Batch norms that are not frozen have the same values here as frozen ones: those of evaluation.
    options: dict[str, Any] = {"features_only": True, "out_indices": list(structure.indices)}
    if dilated:
        options["output_stride"] = DILATED_STRIDE
    with torch.device("meta"):
        theirs = _shapes(timm.create_model(architecture, **options).state_dict())
    ours = _shapes(model.backbone.network.state_dict())
    if any(theirs.get(tensor) != shape for tensor, shape in ours.items()):
        raise UsageError(
            f"transformers builds the backbone {name} with other layers than this library",
            where,
            REMEDY,
        )

    is_plain = architecture == "resnet50" and not isinstance(recipe, Mask2Former)
    if name == RESNET50 and is_plain and (dilated or strides == (32,)):
        # As in the published files, which versions 4 and 5 of transformers read
        config = {
            "use_timm_backbone": True,
            "backbone": architecture,
            "use_pretrained_backbone": False,
            "backbone_config": None,
        }
    else:
        config = {
            "use_timm_backbone": False,
            "backbone_config": {
                "model_type": "timm_backbone",
                "backbone": architecture,
                "num_channels": 3,
                # transformers' own frozen batch norm would drop the activation of timm's norms.
                "freeze_batch_norm_2d": True,
                **options,
            },
        }
    unused = tuple(tensor for tensor in theirs if tensor not in ours)
    return HuggingFaceBackbone(config, structure.mean, structure.std, unused)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shapes of tensors by their names in timm, without counters of batch norms."""
    return {
        name.removeprefix("model."): value.shape
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
