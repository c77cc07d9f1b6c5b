"""Batches of all kinds: without objects, with more objects than queries, with padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR
from groupdetr.detectors.lw_detr import LWDETR
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.petr import PETR
from groupdetr.detectors.recipe import Recipe
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.position_embedding import BoxPositionEmbedding, PositionEmbedding
from groupdetr.modeling.queries.proposals import Proposals
from groupdetr.structures.images import Images
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.targets import TargetBatch

from .conftest import every_kind
from .detectors import (
    FAST,
    build,
    detector_input,
    detector_targets,
    random_images,
    random_target,
    with_groups,
)

SIZES = ((2, 3), (3, 1))
# Multiples of 64 pixels: no level rounds its size, not even one of stride 64.
EVEN_SIZES = ((4, 6), (6, 2), (2, 2))


def run(model: DetectionTransformer, images: Images | None = None) -> Outputs:
    return model(detector_input(model.recipe, images or random_images(*SIZES)))


def test_without_objects_losses_are_finite_and_every_parameter_has_a_gradient(
    recipe: Recipe,
) -> None:
    """So every process of a distributed run builds the same graph, whatever its images contain.

    Here with one group; the chunks of three groups are compared in `test_chunks`.
    """
    model = build(with_groups(recipe, 1)).train()
    for counts in ((3, 0), (0, 0)):
        model.zero_grad()
        targets = detector_targets(recipe, [random_target(count) for count in counts])
        losses = recipe.criterion()(run(model), targets)
        assert all(loss.isfinite() for loss in losses.values())
        torch.stack([*losses.values()]).sum().backward()
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        assert not [name for name, p in trained if p.grad is None], counts
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_without_objects_the_loss_does_not_grow_with_the_number_of_groups(recipe: Recipe) -> None:
    """The authors' branch clamps its normaliser after the factor K, so there it grows K-fold."""
    criterion = recipe.criterion()
    no_objects = detector_targets(recipe, [random_target(0), random_target(0)])
    outputs = run(build(recipe).train())
    losses = criterion(outputs, no_objects)
    losses_by_group = []
    for k in range(recipe.num_groups):
        losses_by_group.append(criterion(outputs_of_group(outputs, k), no_objects))
    for name, loss in losses.items():
        mean = sum(group_losses[name].item() for group_losses in losses_by_group) / len(
            losses_by_group
        )
        assert loss.item() == pytest.approx(mean, rel=1e-5)


def outputs_of_group(outputs: Outputs, group: int) -> Outputs:
    queries = outputs.queries
    groups = slice(group, group + 1)
    if queries.proposals is not None:
        queries = replace(queries, proposals=queries.proposals[:, groups])
    return Outputs([layer[:, groups] for layer in outputs.layers], queries)


@every_kind
def test_with_more_objects_than_queries_every_query_is_matched(recipe: Recipe) -> None:
    targets = [random_target(recipe.num_queries + 5), random_target(1)]
    targets = detector_targets(recipe, targets)
    outputs = run(build(recipe).train())
    criterion = recipe.criterion()
    supervised = outputs.supervised()[0]
    assignment = criterion.assign(supervised, TargetBatch.from_targets(targets))
    assert assignment.query.shape[1] == recipe.num_groups * (recipe.num_queries + 1)
    assert all(loss.isfinite() for loss in criterion(outputs, targets).values())


def test_padding_has_no_effect_behind_the_feature_maps(recipe: Recipe) -> None:
    """A batch of images of different sizes equals the images one by one.

    The test starts at the projected maps, whose padding is filled with noise. The published
    backbones and projections themselves do not ignore padding: it is zero before the first
    convolution but not after it, and norms include it. Two more properties of published detectors
    are excluded: positions of boxes in the padded image (`PaddedBoxPositionEmbedding`), and
    proposals in the padding (`Proposals.select`).
    """
    if isinstance(recipe, Mask2Former):
        pytest.skip("the published code treats padding as a part of the image")
    if isinstance(recipe, PETR):
        pytest.skip("the images of cameras always have one size")
    model = build(with_boxes_of_unpadded_images(recipe))
    for module in model.modules():
        if isinstance(module, Proposals):
            module.select = partial(select_valid, module.select)
    singles = [random_images(size, seed=seed) for seed, size in enumerate(EVEN_SIZES)]
    with torch.no_grad():
        maps_of_images = [model.encoder.project(model.backbone(x.pixels)) for x in singles]
        batch = Images.from_list([single.pixels[0] for single in singles])
        maps_of_batch = [pad_with_noise(level) for level in zip(*maps_of_images)]
        outputs = run_after_projection(model, maps_of_batch, batch)
        for row, (single, maps) in enumerate(zip(singles, maps_of_images)):
            single_outputs = run_after_projection(model, maps, single)
            for ours, theirs in zip(outputs.layers, single_outputs.layers):
                assert (ours.logits[row] - theirs.logits[0]).abs().max() < 1e-5
                assert (ours.location[row] - theirs.location[0]).abs().max() < 1e-5


def with_boxes_of_unpadded_images(recipe: Recipe) -> Recipe:
    """Return the detector with position embeddings of boxes in the unpadded image."""
    if not isinstance(recipe, DABDeformableDETR | LWDETR):
        return recipe

    def query_position_embedding(self: Recipe) -> PositionEmbedding:
        return BoxPositionEmbedding(self.channels)

    methods = {"query_position_embedding": query_position_embedding}
    return type("Unpadded", (type(recipe),), methods)(**vars(recipe))


def select_valid(
    select: Callable[[Tensor, Tensor], Tensor], scores: Tensor, anchors: Tensor
) -> Tensor:
    """Select tokens without a valid anchor last."""
    # The anchor of such a token is infinite, or has no size.
    invalid = anchors[:, None, :, 2].isinf() | (anchors[:, None, :, 2] == 0)
    return select(scores.masked_fill(invalid, -torch.inf), anchors)


def run_after_projection(
    model: DetectionTransformer, maps: list[Tensor], images: Images
) -> Outputs:
    memory = model.encoder.encode(maps, images.padding)
    queries = model.queries(memory, None)
    return Outputs(model.decoder(queries, memory), queries)


def pad_with_noise(maps: tuple[Tensor, ...]) -> Tensor:
    """Return maps [1,C,h,w] of one level as a batch [B,C,H,W] with noise in the padding."""
    height = max(x.shape[2] for x in maps)
    width = max(x.shape[3] for x in maps)
    batch = torch.randn(len(maps), maps[0].shape[1], height, width)
    for row, x in enumerate(maps):
        batch[row, :, : x.shape[2], : x.shape[3]] = x[0]
    return batch


@pytest.mark.parametrize("name", ["conditional-detr", "mask2former", "petr", "petrv2"])
def test_images_of_a_batch_do_not_influence_each_other(name: str) -> None:
    """Of the other detectors, the test of padding compares batches with single images."""
    model = build(FAST[name])
    pair = random_images((2, 2), (2, 2))
    with torch.no_grad():
        both = run(model.eval(), pair).final
        first = run(model, Images(pair.pixels[:1], pair.padding[:1])).final
    assert (both.logits[0] - first.logits[0]).abs().max() < 1e-5
    assert F.l1_loss(both.logits[0], both.logits[1]) > 1e-5, "the two images must differ"
