"""Denoising in all groups: ground truth does not leak, and K groups are still K detectors.

(DN-DETR w/ Group)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from groupdetr.detectors.recipe import Recipe
from groupdetr.groups import attend_across_groups, denoise_primary_group
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Denoising, Queries
from groupdetr.structures.targets import TargetBatch

from .detectors import (
    FAST,
    SLOW,
    build,
    random_images,
    random_target,
    single_group_detector,
    with_choices,
    with_groups,
)
from .test_groups import assert_gradients_add_up, max_difference, total

IMAGES = random_images((2, 3), (3, 1), (1, 2))
TARGETS = [random_target(4), random_target(0), random_target(2, seed=3)]
CASES = [
    pytest.param(recipe, id=name, marks=pytest.mark.slow if name in SLOW else ())
    for name, recipe in {**FAST, **SLOW}.items()
    if hasattr(recipe, "num_denoising")
]


@pytest.fixture(params=CASES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """Every detector with denoising."""
    return request.param


@pytest.fixture
def model(recipe: Recipe) -> DetectionTransformer:
    return build(recipe).train()


def run(model: DetectionTransformer, seed: int = 0) -> Outputs:
    torch.manual_seed(seed)
    return model(IMAGES, TARGETS)


def matching(outputs: Outputs) -> list[Predictions]:
    """Return the predictions of the matching queries of every layer."""
    return [layer[:, :, outputs.queries.num_denoising :] for layer in outputs.layers]


def denoising(outputs: Outputs) -> list[Predictions]:
    """Return the predictions of the denoising queries of every layer."""
    return [layer[:, :, : outputs.queries.num_denoising] for layer in outputs.layers]


def denoising_of(queries: Queries) -> Denoising:
    assert queries.denoising is not None
    return queries.denoising


def run_with_changed_queries(
    model: DetectionTransformer, change: Callable[[Queries], None]
) -> Outputs:
    """Run the model as `run` does, with queries that ``change`` modifies in place."""

    def hook(module: Any, inputs: Any, queries: Queries) -> None:
        change(queries)

    with model.queries.register_forward_hook(hook):
        return run(model)


def perturb(queries: Queries, *index: Any) -> None:
    """Change contents and boxes at ``index`` of [B,K,D+N]."""
    queries.content[index] += torch.randn_like(queries.content[index])
    queries.reference[index] = 1 - queries.reference[index]


EVERY = slice(None)


# No leak of ground truth


def test_matching_queries_of_all_groups_never_attend_to_denoising_queries(
    model: DetectionTransformer,
) -> None:
    """Perturbing the denoising queries of a group changes no matching query of any group."""

    def perturb_denoising(group: int) -> Callable[[Queries], None]:
        return lambda queries: perturb(queries, EVERY, group, slice(queries.num_denoising))

    with torch.no_grad():
        before = run(model)
        for group in range(model.recipe.num_groups):
            after = run_with_changed_queries(model, perturb_denoising(group))
            for a, b in zip(matching(before), matching(after)):
                assert torch.equal(a.logits, b.logits)
                assert torch.equal(a.boxes, b.boxes)
            a, b = denoising(before)[-1], denoising(after)[-1]
            for k in range(model.recipe.num_groups):
                assert torch.equal(a.logits[:, k], b.logits[:, k]) == (k != group)


def test_copies_attend_to_matching_queries_but_not_to_each_other(
    model: DetectionTransformer,
) -> None:
    with torch.no_grad():
        before = run(model)
        copies = denoising_of(before.queries).copies
        size = before.queries.num_denoising // copies  # queries of a copy
        first_copy_perturbed = run_with_changed_queries(
            model, lambda queries: perturb(queries, EVERY, EVERY, slice(size))
        )
        last_matching_perturbed = run_with_changed_queries(
            model, lambda queries: perturb(queries, EVERY, EVERY, -1)
        )
    a = denoising(before)[-1].logits
    b = denoising(first_copy_perturbed)[-1].logits
    c = denoising(last_matching_perturbed)[-1].logits
    assert copies > 1
    assert torch.equal(a[:, :, size:], b[:, :, size:])
    assert max_difference(a[:, :, :size], b[:, :, :size]) > 1e-4
    assert max_difference(a, c) > 1e-6


def test_matching_queries_predict_as_without_denoising(model: DetectionTransformer) -> None:
    with torch.no_grad():
        for a, b in zip(matching(run(model)), model(IMAGES).layers):
            assert max_difference(a.logits, b.logits) < 1e-5
            assert max_difference(a.boxes, b.boxes) < 1e-5


def test_targets_are_ignored_at_inference(model: DetectionTransformer) -> None:
    with torch.no_grad():
        with_targets = model.eval()(IMAGES, TARGETS)
        without_targets = model(IMAGES)
    assert with_targets.queries.denoising is None
    assert with_targets.queries.num_denoising == 0
    assert torch.equal(with_targets.final.logits, without_targets.final.logits)


def test_final_predictions_in_training_exclude_denoising_queries(
    model: DetectionTransformer,
) -> None:
    final = run(model).final
    assert final.logits.shape[1] == model.recipe.num_groups * model.recipe.num_queries


def test_every_group_has_its_own_noise(model: DetectionTransformer) -> None:
    queries = run(model).queries
    # The first image has the most objects, so all its denoising queries have one.
    boxes = queries.reference[0, :, : queries.num_denoising]
    distances = (boxes[:, None] - boxes[None]).abs().amax((-1, -2)) + torch.eye(len(boxes))
    assert distances.min() > 1e-3


# K groups are K detectors


class ReplacedNoise:
    """The noise of a detector, drawn by another function."""

    def __init__(
        self, noise: Any, function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        self.noise, self.function = noise, function

    def __getattr__(self, name: str) -> Any:
        return getattr(self.noise, name)

    def __call__(self, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(labels, boxes)


class RecordedNoise(ReplacedNoise):
    """The noise of a detector, recorded so that single groups can be given the same."""

    def __init__(self, noise: Any) -> None:
        super().__init__(noise, self.record)

    def record(self, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        self.labels, self.boxes = self.noise(labels, boxes)
        return self.labels, self.boxes

    def of_group(self, group: int) -> ReplacedNoise:
        """Return the recorded noise of one group."""
        labels, boxes = self.labels[:, group : group + 1], self.boxes[:, group : group + 1]
        return ReplacedNoise(self.noise, lambda *_: (labels, boxes))


def single_group_detectors(
    model: DetectionTransformer,
) -> tuple[Outputs, list[DetectionTransformer]]:
    """Return the outputs of all groups, and every group as a detector with the same noise."""
    recorded = RecordedNoise(model.queries.noise)
    model.queries.noise = recorded
    outputs = run(model)
    singles = []
    for k in range(model.recipe.num_groups):
        single = single_group_detector(model, k).train()
        single.queries.noise = recorded.of_group(k)
        singles.append(single)
    return outputs, singles


def test_k_groups_with_denoising_are_k_detectors(model: DetectionTransformer) -> None:
    outputs, singles = single_group_detectors(model)
    for k, single in enumerate(singles):
        for ours, theirs in zip(outputs.layers, single(IMAGES, TARGETS).layers, strict=True):
            assert max_difference(ours.logits[:, k], theirs.logits[:, 0]) < 1e-5
            assert max_difference(ours.boxes[:, k], theirs.boxes[:, 0]) < 1e-5


def test_losses_and_gradients_are_the_mean_of_theirs(model: DetectionTransformer) -> None:
    criterion = model.recipe.criterion()
    outputs, singles = single_group_detectors(model)
    losses = criterion(outputs, TARGETS)
    single_losses = [criterion(single(IMAGES, TARGETS), TARGETS) for single in singles]
    for single in single_losses:
        assert single.keys() == losses.keys()
    assert any("denoising" in name for name in losses)
    for name, loss in losses.items():
        mean = sum(single[name].item() for single in single_losses) / len(singles)
        assert loss.item() == pytest.approx(mean, rel=1e-5)
    total(losses).backward()
    for single in single_losses:
        (total(single) / len(singles)).backward()
    assert_gradients_add_up(model, [dict(single.named_parameters()) for single in singles])


# The loss


def test_the_denoising_loss_is_that_of_every_query_with_its_own_object(
    model: DetectionTransformer,
) -> None:
    """The loss is computed again with a loop over all denoising queries.

    The first query of an object is positive. With contrastive noise (DINO), all others are
    negative, those without an object included. Without it (DN-DETR), those without an object have
    no loss. The normaliser is K * copies * objects.
    """
    with torch.no_grad():
        outputs = run(model)
        losses = model.recipe.criterion()(outputs, TARGETS)
    predictions, noise = denoising(outputs)[-1], model.queries.noise
    known = denoising_of(outputs.queries)
    queries_per_copy = known.num_queries // known.copies
    num_slots = queries_per_copy // noise.boxes_per_object  # objects of an image, with padding
    sums = dict.fromkeys(("focal", "l1", "giou"), 0.0)
    for image, k, query in itertools.product(
        range(len(TARGETS)), range(model.recipe.num_groups), range(known.num_queries)
    ):
        target = TARGETS[image]
        number, t = divmod(query % queries_per_copy, num_slots)  # number of the query of object t
        logits, box = predictions.logits[image, k, query], predictions.boxes[image, k, query]
        positive_class = torch.zeros_like(logits)
        if number == 0 and t < len(target):
            positive_class[target.labels[t]] = 1.0
            sums["l1"] += float((box - target.boxes[t]).abs().sum())
            giou_loss = generalized_box_iou_loss(
                cxcywh_to_xyxy(box), cxcywh_to_xyxy(target.boxes[t])
            )
            sums["giou"] += float(giou_loss)
        elif noise.boxes_per_object == 1:
            continue
        score = logits.sigmoid()
        p = positive_class * score + (1 - positive_class) * (1 - score)
        alpha = 0.25 * positive_class + 0.75 * (1 - positive_class)
        sums["focal"] += float((alpha * (1 - p) ** 2 * -p.log()).sum())
    num_objects = sum(len(target) for target in TARGETS)
    normaliser = model.recipe.num_groups * known.copies * num_objects
    last_layer = len(outputs.layers) - 1
    weights = {term.name: term.loss_weight for term in model.recipe.terms()}
    for name, value in sums.items():
        expected = weights[name] * value / normaliser
        loss = losses[f"layer{last_layer}-denoising/{name}"]
        assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_unsupervised_queries_get_no_gradient(model: DetectionTransformer) -> None:
    outputs = run(model)
    for layer in outputs.layers:
        layer.logits.retain_grad()
    total(model.recipe.criterion()(outputs, TARGETS)).backward()
    unsupervised = denoising_of(outputs.queries).unsupervised
    unsupervised = unsupervised.expand(-1, model.recipe.num_groups, -1)
    assert unsupervised.any() == (model.queries.noise.boxes_per_object == 1)
    for layer in outputs.layers:
        assert layer.logits.grad is not None
        grad = layer.logits.grad[:, :, : unsupervised.shape[-1]]
        assert grad[unsupervised].abs().sum() == 0
        assert grad[~unsupervised].abs().min() > 0


@pytest.mark.parametrize("num_groups", [1, 3])
def test_without_objects_the_denoising_loss_is_zero_and_every_parameter_has_a_gradient(
    recipe: Recipe, num_groups: int
) -> None:
    """So every process of a distributed run has the same losses and gradients.

    That holds whatever its images contain.
    """
    model = build(with_groups(recipe, num_groups)).train()
    no_objects = [random_target(0)] * 3
    losses = recipe.criterion()(model(IMAGES, no_objects), no_objects)
    losses_with_objects = recipe.criterion()(run(model), TARGETS)
    assert losses.keys() == losses_with_objects.keys()
    assert all(loss == 0 for name, loss in losses.items() if "denoising" in name)
    total(losses).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_with_denoising_in_the_primary_group_only_that_group_has_a_denoising_loss(
    recipe: Recipe,
) -> None:
    primary = with_choices(recipe, denoise=denoise_primary_group)
    outputs, singles = single_group_detectors(build(primary).train())
    criterion = primary.criterion()
    losses = criterion(outputs, TARGETS)
    losses_of_group_0 = criterion(singles[0](IMAGES, TARGETS), TARGETS)
    denoising_losses = {name: loss for name, loss in losses.items() if "denoising" in name}
    for name, loss in denoising_losses.items():
        assert loss.item() == pytest.approx(losses_of_group_0[name].item(), rel=1e-5)
    (grad,) = torch.autograd.grad(total(denoising_losses), outputs.layers[0].boxes)
    assert grad[:, 1:].abs().max() == 0


# Details


def test_with_joint_attention_no_group_attends_to_denoising_queries_of_another(
    recipe: Recipe,
) -> None:
    """Table 7 (c) with denoising: only the matching queries of all groups attend to each other."""
    joint = with_choices(recipe, group_attention=attend_across_groups)
    model = build(joint).train()
    with torch.no_grad():
        before = run(model)
        denoising_queries = slice(before.queries.num_denoising)
        denoising_perturbed = run_with_changed_queries(
            model, lambda queries: perturb(queries, EVERY, 1, denoising_queries)
        )
        matching_perturbed = run_with_changed_queries(
            model, lambda queries: perturb(queries, EVERY, 1, -1)
        )
    for a, b in zip(matching(before), matching(denoising_perturbed)):
        assert torch.equal(a.logits, b.logits)
    a, b = denoising(before)[-1], denoising(denoising_perturbed)[-1]
    assert torch.equal(a.logits[:, 0], b.logits[:, 0])
    a, b = matching(before)[-1], matching(matching_perturbed)[-1]
    assert max_difference(a.logits[:, 0], b.logits[:, 0]) > 1e-6


def test_more_objects_than_denoising_queries_have_one_copy(model: DetectionTransformer) -> None:
    num_objects = model.recipe.num_denoising + 3
    targets = [random_target(num_objects), random_target(1), random_target(0)]
    outputs = model(IMAGES, targets)
    assert outputs.queries.num_denoising == model.queries.noise.boxes_per_object * num_objects
    assert all(loss.isfinite() for loss in model.recipe.criterion()(outputs, targets).values())


def test_denoising_queries_start_from_their_noised_objects(model: DetectionTransformer) -> None:
    """Without noise: from the boxes of the objects and the embeddings of their labels."""
    noise = ReplacedNoise(model.queries.noise, lambda labels, boxes: (labels, boxes))
    model.queries.noise = noise
    queries = run(model).queries
    targets = TargetBatch.from_targets(TARGETS)
    known = denoising_of(queries)
    axes = (known.copies, noise.boxes_per_object, -1)
    reference = queries.reference[:, :, : known.num_queries].unflatten(2, axes)
    content = queries.content[:, :, : known.num_queries].unflatten(2, axes)
    for image, count in enumerate(targets.counts):
        for t in range(count):
            box = targets.boxes[image, t].clamp(1e-3, 1 - 1e-3)
            assert torch.allclose(reference[image, ..., t, :], box, atol=1e-5)
            label_embedding = model.queries.labels(targets.labels[image, t])
            object_content = content[image, ..., t, :]
            assert torch.equal(object_content, label_embedding.expand_as(object_content))
