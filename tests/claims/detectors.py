"""Small versions of all detectors, for which the claims are tested, and inputs for them.

A new detector is one more line in a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR, TwoStageDABDeformableDETR
from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.detectors.dino import DINO
from groupdetr.detectors.dn_detr import DNDETR
from groupdetr.detectors.lw_detr import LWDETR
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.tiny import (
    MicroRFDETR,
    MicroRFDETRSeg,
    TinyConditionalDETR,
    TinyDABDeformableDETR,
    TinyDABDETR,
    TinyDINO,
    TinyDNDETR,
    TinyMask2Former,
    TinyPETR,
    TinyPETRv2,
    TinyTwoStageDABDeformableDETR,
)
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images
from groupdetr.structures.targets import Target

SMALL: dict[str, Any] = {
    "num_classes": 7,
    "num_groups": 3,
    "num_queries": 6,
    "channels": 32,
    "num_heads": 2,
    "dim_feedforward": 48,
}
# A group norm with 32 groups needs more than one number in a group, also for a single pixel.
WIDER: dict[str, Any] = {**SMALL, "channels": 64}
LARGE: dict[str, Any] = {"num_groups": 3, "num_queries": 20, "dropout": 0.0}

DETECTORS_2D: dict[str, Recipe] = {
    "conditional-detr": TinyConditionalDETR(**SMALL),
    "dab-detr": TinyDABDETR(**SMALL),
    "dn-detr": TinyDNDETR(**SMALL, num_denoising=8),
    "dab-deformable-detr": TinyDABDeformableDETR(**WIDER),
    "dab-deformable-detr-two-stage": TinyTwoStageDABDeformableDETR(**WIDER),
    "dino": TinyDINO(**WIDER, num_denoising=8),
    "mask2former": TinyMask2Former(**WIDER, encoder_dim_feedforward=48, num_samples=64),
}
DETECTORS_2D |= {
    "rf-detr": MicroRFDETR(**SMALL, cross_attention_heads=4, vit_width=24, vit_heads=2),
    "rf-detr-seg": MicroRFDETRSeg(**SMALL, cross_attention_heads=4, vit_width=24, vit_heads=2),
    "lw-detr": LWDETR(
        **SMALL,
        cross_attention_heads=4,
        projector_levels=("P3", "P5"),
        strides=(8,),
        num_windows=4,
        vit_width=24,
        vit_depth=2,
        vit_heads=2,
        global_blocks=(1,),
        map_blocks=(0, 1),
        position_grid=4,
    ),
}
DETECTORS_3D: dict[str, Recipe] = {
    "petr": TinyPETR(**SMALL),
    "petrv2": TinyPETRv2(**SMALL),
}
FAST = DETECTORS_2D | DETECTORS_3D
SLOW: dict[str, Recipe] = {
    "conditional-detr-r50": ConditionalDETR(**LARGE),
    "conditional-detr-r50-dc5": ConditionalDETR(**LARGE, dilated=True),
    "dab-detr-r50": DABDETR(**LARGE),
    "dab-detr-r50-dc5": DABDETR(**LARGE, dilated=True),
    "dn-detr-r50": DNDETR(**LARGE),
    "dn-detr-r50-dc5": DNDETR(**LARGE, dilated=True),
    "dab-deformable-detr-r50": DABDeformableDETR(**LARGE),
    "dab-deformable-detr-r50-two-stage": TwoStageDABDeformableDETR(**LARGE),
    "dino-4scale-r50": DINO(**LARGE),
    "mask2former-r50": Mask2Former(**LARGE, num_samples=256),
    "petr-v99": PETR(**LARGE, grid_mask=0.0),
    "petrv2-v99": PETRv2(**LARGE, grid_mask=0.0),
}
STRIDE = 32  # the largest stride of all backbones


def build(recipe: Recipe, seed: int = 0) -> DetectionTransformer:
    """Build a detector and move all weights behind the backbone away from their initial values.

    Otherwise the last layers of box heads would be zero and hide their input. The backbone is left
    alone: one whose norms are frozen, as VoVNet's, would explode.
    """
    torch.manual_seed(seed)
    model = recipe.build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.startswith("backbone."):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def with_groups(recipe: Recipe, num_groups: int) -> Recipe:
    return recipe.with_options(num_groups=num_groups)


def with_choices(recipe: Recipe, **functions: Callable[..., Any]) -> Recipe:
    """Return the detector with other functions of `groups.py`, such as ``match=match_naively``."""
    return recipe.with_options(**functions)


@cache
def parameters_of_groups(recipe: Recipe) -> set[str]:
    """Return the names of the parameters that have a group axis, which is their first."""
    with torch.device("meta"):
        two_groups = with_groups(recipe, 2).build().state_dict()
        one_group = with_groups(recipe, 1).build().state_dict()
    return {name for name in two_groups if two_groups[name].shape != one_group[name].shape}


def single_group_detector(model: DetectionTransformer, group: int) -> DetectionTransformer:
    """Return the plain detector that has only this group and shares all other weights."""
    single = with_groups(model.recipe, 1).build()
    with_group_axis = parameters_of_groups(model.recipe)
    state = {}
    for name, value in model.state_dict().items():
        state[name] = value[group : group + 1] if name in with_group_axis else value
    single.load_state_dict(state)
    return single


def random_images(*sizes: tuple[int, int], seed: int = 1) -> Images:
    """Return images of (height, width) in strides, with structures of half a stride."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for height, width in sizes:
        coarse = torch.randn(1, 3, 2 * height, 2 * width, generator=generator)
        images.append(F.interpolate(coarse, scale_factor=STRIDE // 2)[0])
    return Images.from_list(images)


def random_target(count: int, seed: int = 2) -> Target:
    """Return a target with ``count`` objects, with boxes and masks."""
    generator = torch.Generator().manual_seed(seed)
    centre, size = torch.rand(2, count, 2, generator=generator)
    labels = torch.randint(0, 7, (count,), generator=generator)
    boxes = torch.cat([0.3 + 0.4 * centre, 0.05 + 0.5 * size], dim=1)
    return Target(labels, boxes, ellipse_masks(boxes, 2 * STRIDE))


def ellipse_masks(boxes: Tensor, side: int) -> Tensor:
    """Return masks [T,side,side] bool of the ellipses inside the boxes."""
    pixel_centres = (torch.arange(side) + 0.5) / side
    cx, cy, width, height = (x.unsqueeze(1) for x in boxes.unbind(1))
    x = (pixel_centres - cx) / width * 2  # [T,side]
    y = (pixel_centres - cy) / height * 2
    return x.unsqueeze(1) ** 2 + y.unsqueeze(2) ** 2 <= 1


def detector_input(recipe: Recipe, images: Images) -> Images | CameraImages:
    """Return the images in the form that the detector takes.

    For a 3D detector each image becomes two views of half its size, the second one mirrored.
    """
    if not isinstance(recipe, PETR):
        return images
    small = images.pixels[..., ::2, ::2]
    views = torch.stack([small, small.flip(-1)], dim=1)
    width = small.shape[-1]
    cameras = torch.stack([camera_projection(0.3, width), camera_projection(1.9, width)])
    elapsed = images.pixels.new_full((len(images),), 0.5)
    return CameraImages.from_projections(views, cameras.expand(len(images), -1, -1, -1), elapsed)


def camera_projection(angle: float, width: int) -> Tensor:
    """Return the projection [4,4] of a camera that points horizontally in direction ``angle``."""
    sine, cosine = math.sin(angle), math.cos(angle)
    extrinsic = torch.eye(4)
    extrinsic[:3] = torch.tensor(
        [[sine, -cosine, 0.0, 0.0], [0.0, 0.0, -1.0, 1.5], [cosine, sine, 0.0, 0.2]]
    )
    intrinsic = torch.eye(4)
    intrinsic[0, 0] = intrinsic[1, 1] = 0.8 * width
    intrinsic[0, 2], intrinsic[1, 2] = width / 2, width / 3
    return intrinsic @ extrinsic


def detector_targets(recipe: Recipe, targets: Sequence[Target]) -> list[Target]:
    """Return the targets in the form that the detector takes: with 3D boxes for a 3D detector."""
    if not isinstance(recipe, PETR):
        return list(targets)
    return [Target(target.labels, to_boxes3d(target.boxes)) for target in targets]


def to_boxes3d(boxes: Tensor) -> Tensor:
    """Return 3D boxes [T,9] for boxes [T,4].

    They are spread widely among the queries. If all queries were on one side of two objects, the
    sum of the distances in x and y would be the same for both assignments, and rounding would
    decide.
    """
    x, y, width, length = boxes.unbind(1)
    centre = (240 * x - 120, 240 * y - 120, -1 - x)
    size = (1 + 3 * width, 2 + 5 * length, 1 + y)
    yaw = 6 * x - 3
    velocity = (width - y, length)
    return torch.stack([*centre, *size, yaw, *velocity], dim=1)


def compute_gradients(
    networks: Sequence[nn.Module],
    recipe: Recipe,
    images: Images | CameraImages,
    counts: Sequence[int],
    seed: int,
) -> None:
    """Compute the gradients of each network with losses, for ``counts`` objects of the images.

    All networks have the same targets and the same random numbers.
    """
    targets = [random_target(count, number) for number, count in enumerate(counts)]
    for network in networks:
        network.zero_grad(set_to_none=True)
        torch.manual_seed(seed)  # for dropout, and for the noise of denoising
        loss, _ = network(images, detector_targets(recipe, targets))
        loss.backward()
