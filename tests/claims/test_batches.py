"""No batch is special: empty ones, crowded ones, padded ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.petr import PETR
from groupdetr.detectors.recipe import Recipe
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.position_embedding import OfBox
from groupdetr.modeling.queries.proposals import Proposals
from groupdetr.structures.images import Images
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.targets import Objects

from .detectors import build, images, shown, target, told, with_groups

SIZES = ((2, 3), (3, 1), (1, 1))
EVEN = ((4, 6), (6, 2), (2, 2))  # no level's size is rounded, not even where a level has stride 64


def see(model: DetectionTransformer, pictures: Images | None = None) -> Outputs:
    return model(shown(model.recipe, pictures or images(*SIZES[:2])))


@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize(
    "counts", [(3, 0), (0, 0)], ids=["one image without objects", "no objects"]
)
def test_without_objects_losses_are_finite_and_every_parameter_learns(
    recipe: Recipe, num_groups: int, counts: tuple[int, int]
) -> None:
    """So every process of a distributed run builds the same graph, whatever its images hold."""
    model = build(with_groups(recipe, num_groups)).train()
    losses = recipe.criterion()(see(model), told(recipe, [target(count) for count in counts]))
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack([*losses.values()]).sum().backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_without_objects_the_loss_does_not_grow_with_the_number_of_groups(recipe: Recipe) -> None:
    """The authors' branch clamps its normaliser after the factor K, so there it grows K-fold."""
    criterion, empty = recipe.criterion(), told(recipe, [target(0), target(0)])
    outputs = see(build(recipe).train())
    together = criterion(outputs, empty)
    each = [criterion(only(outputs, k), empty) for k in range(recipe.num_groups)]
    for name, loss in together.items():
        assert loss.item() == pytest.approx(
            sum(losses[name].item() for losses in each) / len(each), rel=1e-5
        )


def only(outputs: Outputs, group: int) -> Outputs:
    queries, here = outputs.queries, slice(group, group + 1)
    if queries.proposals is not None:
        queries = replace(queries, proposals=queries.proposals[:, here])
    return Outputs([layer[:, here] for layer in outputs.layers], queries)


def test_a_batch_without_objects_is_assigned_nothing(recipe: Recipe) -> None:
    """Nor needs it a slot for one: evaluations lay objects out as they are."""
    with torch.no_grad():
        stages = see(build(recipe).eval()).stages()[0]
    pairs = recipe.criterion().assign(
        stages, Objects.from_targets(told(recipe, [target(0), target(0)]))
    )
    assert pairs.query.shape[1] == 0


def test_more_objects_than_queries_are_matched_as_far_as_queries_go(recipe: Recipe) -> None:
    crowd = told(recipe, [target(recipe.num_queries + 5), target(1)])
    outputs = see(build(recipe).train())
    criterion = recipe.criterion()
    stages = outputs.stages()[0]
    pairs = criterion.assign(stages, Objects.from_targets(crowd))
    assert pairs.query.shape[1] == recipe.num_groups * (recipe.num_queries + 1)
    assert all(loss.isfinite() for loss in criterion(outputs, crowd).values())


def test_padding_has_no_effect_on_what_follows_the_feature_maps(recipe: Recipe) -> None:
    """A batch of different sizes equals its images one by one, whatever stands in the padding of the projected maps.

    The published backbones and projections themselves look over the edge: behind it is zero before the first
    convolution, but not after it, and a norm counts it. Two more habits of published detectors are exempt: to read the
    position off a box in the padded image (`OfPaddedBox`), and to let padding be proposed (`Proposals.choose`).
    """
    if isinstance(recipe, Mask2Former):
        pytest.skip("as published, it takes padding for a part of the image")
    if isinstance(recipe, PETR):
        pytest.skip("images of cameras are of one size, always")
    model = build(in_unpadded_images(recipe))
    for part in model.modules():
        if isinstance(part, Proposals):
            part.choose = partial(choose_inside, part.choose)  # type: ignore[method-assign]
    singles = [images(size, seed=seed) for seed, size in enumerate(EVEN)]
    with torch.no_grad():
        features = [model.encoder.project(model.backbone(single.pixels)) for single in singles]
        batch = Images.from_list([single.pixels[0] for single in singles])
        together = after_maps(model, [side_by_side(level) for level in zip(*features)], batch)
        for row, (single, own) in enumerate(zip(singles, features)):
            alone = after_maps(model, own, single)
            for ours, theirs in zip(together.layers, alone.layers):
                assert (ours.logits[row] - theirs.logits[0]).abs().max() < 1e-5
                assert (ours.place[row] - theirs.place[0]).abs().max() < 1e-5


def in_unpadded_images(recipe: Recipe) -> Recipe:
    """The same detector, but that it reads positions off boxes in the image without its padding."""
    if not isinstance(recipe, DABDeformableDETR):
        return recipe
    changed = {"query_place": lambda self: OfBox(self.channels)}
    return type("Unpadded", (type(recipe),), changed)(**vars(recipe))


def choose_inside(
    choose: Callable[[Tensor, Tensor], Tensor], scores: Tensor, anchors: Tensor
) -> Tensor:
    """Tokens without a box come last."""
    return choose(scores.masked_fill(anchors[:, None, :, 0].isinf(), -torch.inf), anchors)


def after_maps(model: DetectionTransformer, maps: list[Tensor], batch: Images) -> Outputs:
    memory = model.encoder.encode(maps, batch.padding)
    queries = model.queries(memory, None)
    return Outputs(model.decoder(queries, memory), queries)


def side_by_side(maps: tuple[Tensor, ...]) -> Tensor:
    """Feature maps [1,C,h,w] of one level as a batch [B,C,H,W], noise in the padding."""
    height, width = (max(x.shape[axis] for x in maps) for axis in (2, 3))
    batch = torch.randn(len(maps), maps[0].shape[1], height, width)
    for row, x in enumerate(maps):
        batch[row, :, : x.shape[2], : x.shape[3]] = x[0]
    return batch


def test_images_of_a_batch_do_not_see_each_other(model: DetectionTransformer) -> None:
    pair = images((2, 2), (2, 2))
    with torch.no_grad():
        both = see(model.eval(), pair).answer
        first = see(model, Images(pair.pixels[:1], pair.padding[:1])).answer
    assert (both.logits[0] - first.logits[0]).abs().max() < 1e-5
    assert F.l1_loss(both.logits[0], both.logits[1]) > 1e-5  # they are told apart
