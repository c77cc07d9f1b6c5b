"""A detector refuses inputs that it cannot take, and says which ones it takes."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.group_chunks import with_loss
from groupdetr.structures.targets import Target
from tests.claims.detectors import FAST, build, detector_input, detector_targets, random_images
from tests.claims.detectors import random_target as target_with

IMAGES = random_images((2, 2), (2, 2))


@pytest.fixture(scope="module", params=["conditional-detr", "dino", "mask2former", "petr"])
def model(request: pytest.FixtureRequest) -> DetectionTransformer:
    return build(FAST[request.param]).train()


def test_images_of_other_types_are_refused(model: DetectionTransformer) -> None:
    expected = "CameraImages" if model.recipe == FAST["petr"] else "Images"
    scenes = detector_input(FAST["petr"], IMAGES)
    others: list[Any] = [IMAGES.pixels, [*IMAGES.pixels], None]
    others.append(scenes if expected == "Images" else IMAGES)
    for images in others:
        message = rf"images must be groupdetr\.{expected}, not .*: create them by groupdetr\."
        with pytest.raises(ValueError, match=message):
            model(images)


def test_bytes_are_no_normalised_pixels(model: DetectionTransformer) -> None:
    images = detector_input(model.recipe, IMAGES).map(
        lambda x: x.to(torch.uint8) if x.is_floating_point() and x.ndim > 3 else x
    )
    with pytest.raises(ValueError, match=r"floating-point numbers, .* not torch\.uint8"):
        model(images)


def test_there_is_a_target_for_every_image(model: DetectionTransformer) -> None:
    networks = [with_loss(model, model.recipe.criterion(), chunk) for chunk in (None, 1)]
    images = detector_input(model.recipe, IMAGES)
    targets = detector_targets(model.recipe, [target_with(2), target_with(1)])
    for others, message in (
        (targets[:1], "there are 1 targets for 2 images"),
        ([*targets, *targets], "there are 4 targets for 2 images"),
        ([{"labels": targets[0].labels}] * 2, "not a list of dict"),
    ):
        for network in networks:
            with pytest.raises(ValueError, match=message):
                network(images, others)


def test_there_is_a_class_for_every_label(model: DetectionTransformer) -> None:
    """Also before denoising queries look up the embedding of the label."""
    networks = [with_loss(model, model.recipe.criterion(), chunk) for chunk in (None, 1)]
    images = detector_input(model.recipe, IMAGES)
    first, second = detector_targets(model.recipe, [target_with(2), target_with(1)])
    second = Target(second.labels * 0 + 7, second.boxes, second.masks)
    # None: as from a GPU, where nothing may be read before the matching.
    for network, max_label in product(networks, (second.max_label, None)):
        second.max_label = max_label
        with pytest.raises(ValueError, match=r"the label 7, but there are 7 classes: .* 0 to 6"):
            network(images, [first, second])


def test_boxes_of_another_kind_are_refused(model: DetectionTransformer) -> None:
    """Also before denoising queries are made of them."""
    network = with_loss(model, model.recipe.criterion(), None)
    sizes = {4: torch.full((1, 9), 0.5), 9: torch.full((1, 4), 0.5)}
    targets = detector_targets(model.recipe, [target_with(1), target_with(1)])
    boxes = sizes[targets[0].boxes.shape[1]]
    others = [Target(target.labels, boxes, target.masks) for target in targets]
    with pytest.raises(ValueError, match=r"boxes.*, not "):
        network(detector_input(model.recipe, IMAGES), others)


def test_targets_of_doubles_are_targets(model: DetectionTransformer) -> None:
    targets = detector_targets(model.recipe, [target_with(2), target_with(1)])
    doubles = [Target(x.labels, x.boxes.double(), x.masks) for x in targets]
    losses = model.recipe.criterion()(model(detector_input(model.recipe, IMAGES), doubles), doubles)
    assert all(loss.isfinite() for loss in losses.values())
