"""Every detector, small: what the claims are proved for. A new detector is one more line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR, TwoStageDABDeformableDETR
from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.detectors.dino import DINO
from groupdetr.detectors.dn_detr import DNDETR
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.tiny import (
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

SMALL = {
    "num_classes": 7,
    "num_groups": 3,
    "num_queries": 6,
    "channels": 32,
    "num_heads": 2,
    "hidden": 48,
}
WIDER = {
    **SMALL,
    "channels": 64,
}  # a group of the norms needs more than one number, also of a single pixel
LARGE = {"num_groups": 3, "num_queries": 20, "dropout": 0.0}

FLAT: dict[str, Recipe] = {
    "conditional-detr": TinyConditionalDETR(**SMALL),  # type: ignore[arg-type]
    "dab-detr": TinyDABDETR(**SMALL),  # type: ignore[arg-type]
    "dn-detr": TinyDNDETR(**SMALL, num_denoising=8),  # type: ignore[arg-type]
    "dab-deformable-detr": TinyDABDeformableDETR(**WIDER),  # type: ignore[arg-type]
    "dab-deformable-detr-two-stage": TinyTwoStageDABDeformableDETR(**WIDER),  # type: ignore[arg-type]
    "dino": TinyDINO(**WIDER, num_denoising=8),  # type: ignore[arg-type]
    "mask2former": TinyMask2Former(**WIDER, encoder_hidden=48, num_samples=64),  # type: ignore[arg-type]
}
SPACE: dict[str, Recipe] = {
    "petr": TinyPETR(**SMALL),  # type: ignore[arg-type]
    "petrv2": TinyPETRv2(**SMALL),  # type: ignore[arg-type]
}
FAST = FLAT | SPACE
SLOW: dict[str, Recipe] = {
    "conditional-detr-r50": ConditionalDETR(**LARGE),  # type: ignore[arg-type]
    "conditional-detr-r50-dc5": ConditionalDETR(**LARGE, dilated=True),  # type: ignore[arg-type]
    "dab-detr-r50": DABDETR(**LARGE),  # type: ignore[arg-type]
    "dab-detr-r50-dc5": DABDETR(**LARGE, dilated=True),  # type: ignore[arg-type]
    "dn-detr-r50": DNDETR(**LARGE),  # type: ignore[arg-type]
    "dn-detr-r50-dc5": DNDETR(**LARGE, dilated=True),  # type: ignore[arg-type]
    "dab-deformable-detr-r50": DABDeformableDETR(**LARGE),  # type: ignore[arg-type]
    "dab-deformable-detr-r50-two-stage": TwoStageDABDeformableDETR(**LARGE),  # type: ignore[arg-type]
    "dino-4scale-r50": DINO(**LARGE),  # type: ignore[arg-type]
    "mask2former-r50": Mask2Former(**LARGE, num_samples=256),  # type: ignore[arg-type]
    "petr-v99": PETR(**LARGE, grid_mask=0.0),  # type: ignore[arg-type]
    "petrv2-v99": PETRv2(**LARGE, grid_mask=0.0),  # type: ignore[arg-type]
}
STRIDE = 32  # no detector's is larger


def build(recipe: Recipe, seed: int = 0) -> DetectionTransformer:
    """With no weight behind the backbone where it started: box heads start at zero, and so would hide what goes into
    them. A backbone whose norms do not count, as VoVNet's, would explode."""
    torch.manual_seed(seed)
    model = recipe.build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.startswith("backbone."):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def grouped(recipe: Recipe) -> set[str]:
    """The parameters that have a group axis, their first."""
    many, one = (with_groups(recipe, k).build().state_dict() for k in (2, 1))
    return {name for name in many if many[name].shape != one[name].shape}


def with_groups(recipe: Recipe, num_groups: int) -> Recipe:
    return recipe.with_options(num_groups=num_groups)


def alone(model: DetectionTransformer, group: int) -> DetectionTransformer:
    """The plain detector that shares all weights and has this one group."""
    single, axes = with_groups(model.recipe, 1).build(), grouped(model.recipe)
    state = {
        name: value[group : group + 1] if name in axes else value
        for name, value in model.state_dict().items()
    }
    single.load_state_dict(state)
    return single


def images(*sizes: tuple[int, int], seed: int = 1) -> Images:
    """Pictures of (height, width) in strides, with structures large enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [torch.randn(1, 3, 2 * h, 2 * w, generator=generator) for h, w in sizes]
    return Images.from_list(
        [torch.nn.functional.interpolate(x, scale_factor=STRIDE // 2)[0] for x in coarse]
    )


def target(count: int, seed: int = 2) -> Target:
    generator = torch.Generator().manual_seed(seed)
    centre, size = torch.rand(2, count, 2, generator=generator)
    labels = torch.randint(0, 7, (count,), generator=generator)
    boxes = torch.cat([0.3 + 0.4 * centre, 0.05 + 0.5 * size], dim=1)
    return Target(labels, boxes, ellipses(boxes, 2 * STRIDE))


def ellipses(boxes: Tensor, side: int) -> Tensor:
    """[T,side,side] bool: what fits into the boxes."""
    places = (torch.arange(side) + 0.5) / side
    x, y = ((places - boxes[:, i, None]) / boxes[:, i + 2, None] * 2 for i in (0, 1))
    return x[:, None, :] ** 2 + y[:, :, None] ** 2 <= 1


def shown(recipe: Recipe, pictures: Images) -> Images | CameraImages:
    """Pictures as the detector takes them: one of scenes takes them as two views, half as large and one of them
    mirrored."""
    if not isinstance(recipe, PETR):
        return pictures
    small = pictures.pixels[..., ::2, ::2]
    views = torch.stack([small, small.flip(-1)], dim=1)
    cameras = torch.stack([camera(angle, small.shape[-1]) for angle in (0.3, 1.9)])
    elapsed = pictures.pixels.new_full((len(pictures),), 0.5)
    return CameraImages.seen_through(views, cameras.expand(len(pictures), -1, -1, -1), elapsed)


def camera(angle: float, width: int) -> Tensor:
    """What projects points on an image, [4,4]; it looks level, where ``angle`` says."""
    sine, cosine = math.sin(angle), math.cos(angle)
    turn, lens = torch.eye(4), torch.eye(4)
    turn[:3] = torch.tensor(
        [[sine, -cosine, 0.0, 0.0], [0.0, 0.0, -1.0, 1.5], [cosine, sine, 0.0, 0.2]]
    )
    lens[0, 0], lens[1, 1], lens[0, 2], lens[1, 2] = 0.8 * width, 0.8 * width, width / 2, width / 3
    return lens @ turn


def told(recipe: Recipe, targets: Sequence[Target]) -> list[Target]:
    """Objects as the detector learns them: one of scenes as boxes on the ground."""
    return (
        [Target(t.labels, stood_up(t.boxes)) for t in targets]
        if isinstance(recipe, PETR)
        else [*targets]
    )


def stood_up(boxes: Tensor) -> Tensor:
    """[T,4] -> [T,9], far apart among the queries: if all of these were to one side of two objects, it would make no
    difference to the sum of distances in x and y which finds which, and rounding would decide."""
    x, y, width, length = boxes.unbind(1)
    place = (240 * x - 120, 240 * y - 120, -1 - x)
    return torch.stack(
        [*place, 1 + 3 * width, 2 + 5 * length, 1 + y, 6 * x - 3, width - y, length], dim=1
    )
