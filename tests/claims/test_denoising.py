"""Denoising in every group: nobody is told an answer, and K groups are still K detectors (DN-DETR w/ Group)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from torchvision.ops import generalized_box_iou_loss

from groupdetr.detectors.recipe import Recipe
from groupdetr.groups import denoise_in_primary, jointly
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Objects

from .detectors import FAST, SLOW, alone, build, grouped, images, target, with_groups
from .test_groups import difference, total
from .test_numerics import FUSED

IMAGES = images((2, 3), (3, 1), (1, 2))
TARGETS = [target(4), target(0), target(2, seed=3)]
CASES = [
    pytest.param(recipe, id=name, marks=pytest.mark.slow if name in SLOW else ())
    for name, recipe in {**FAST, **SLOW}.items()
    if hasattr(recipe, "num_denoising")
]


@pytest.fixture(params=CASES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """Every detector that denoises."""
    return request.param


@pytest.fixture
def model(recipe: Recipe) -> DetectionTransformer:
    return build(recipe).train()


def seeded(model: DetectionTransformer, seed: int = 0) -> Outputs:
    torch.manual_seed(seed)
    return model(IMAGES, TARGETS)


def matching(outputs: Outputs) -> list[Predictions]:
    return [layer[:, :, outputs.queries.num_denoising :] for layer in outputs.layers]


def denoising(outputs: Outputs) -> list[Predictions]:
    return [layer[:, :, : outputs.queries.num_denoising] for layer in outputs.layers]


def changed(model: DetectionTransformer, change: Callable[[Queries], None]) -> Outputs:
    """The same pass, its queries changed in place as they come out of their source."""
    with model.queries.register_forward_hook(lambda *call: change(call[-1])):
        return seeded(model)


def moved(queries: Queries, *where: Any) -> None:
    """Other contents and boxes at ``where`` of [B,K,D+N]."""
    queries.content[where] += torch.randn_like(queries.content[where])
    queries.reference[where] = 1 - queries.reference[where]


def test_matching_queries_never_see_an_answer_in_any_group(model: DetectionTransformer) -> None:
    """Whatever stands in the denoising queries of a group, the matching queries of no group notice."""
    with torch.no_grad():
        before = seeded(model)
        for group in range(model.recipe.num_groups):
            after = changed(
                model,
                lambda queries, k=group: moved(
                    queries, slice(None), k, slice(queries.num_denoising)
                ),
            )  # type: ignore[misc]
            for a, b in zip(matching(before), matching(after)):
                assert torch.equal(a.logits, b.logits)
                assert torch.equal(a.boxes, b.boxes)
            for k in range(model.recipe.num_groups):
                a, b = denoising(before)[-1], denoising(after)[-1]
                assert torch.equal(a.logits[:, k], b.logits[:, k]) == (k != group)


def test_no_gradient_flows_from_matching_queries_to_denoising_ones(
    model: DetectionTransformer,
) -> None:
    kept: list[Queries] = []

    def keep(queries: Queries) -> None:
        queries.content.retain_grad()
        kept.append(queries)

    outputs = changed(model, keep)
    sum(layer.logits.sum() + layer.boxes.sum() for layer in matching(outputs)).backward()  # type: ignore[union-attr]
    grad = kept[0].content.grad
    assert grad is not None
    assert grad[:, :, : outputs.queries.num_denoising].abs().max() == 0
    assert grad[:, :, outputs.queries.num_denoising :].abs().max() > 0


def test_copies_do_not_see_each_other_but_see_the_matching_queries(
    model: DetectionTransformer,
) -> None:
    with torch.no_grad():
        before = seeded(model)
        assert before.queries.denoising is not None
        size = before.queries.num_denoising // before.queries.denoising.copies
        first = changed(
            model, lambda queries: moved(queries, slice(None), slice(None), slice(size))
        )
        last = changed(model, lambda queries: moved(queries, slice(None), slice(None), -1))
    a, b, c = (denoising(outputs)[-1].logits for outputs in (before, first, last))
    assert before.queries.denoising.copies > 1
    assert torch.equal(a[:, :, size:], b[:, :, size:])
    assert difference(a[:, :, :size], b[:, :, :size]) > 1e-4
    assert difference(a, c) > 1e-6


def test_matching_queries_answer_as_without_denoising(model: DetectionTransformer) -> None:
    with torch.no_grad():
        for a, b in zip(matching(seeded(model)), model(IMAGES).layers):
            assert difference(a.logits, b.logits) < 1e-5
            assert difference(a.boxes, b.boxes) < 1e-5


def test_inference_knows_no_targets(model: DetectionTransformer) -> None:
    with torch.no_grad():
        told, plain = model.eval()(IMAGES, TARGETS), model(IMAGES)
    assert told.queries.denoising is None
    assert told.queries.num_denoising == 0
    assert torch.equal(told.answer.logits, plain.answer.logits)


def test_the_answer_in_training_leaves_denoising_queries_out(model: DetectionTransformer) -> None:
    answer = seeded(model).answer
    assert answer.logits.shape[1] == model.recipe.num_groups * model.recipe.num_queries


def test_every_group_has_its_own_noise(model: DetectionTransformer) -> None:
    queries = seeded(model).queries
    assert queries.denoising is not None
    boxes = queries.reference[0, :, : queries.num_denoising]  # the first image has no empty slot
    distances = (boxes[:, None] - boxes[None]).abs().amax((-1, -2)) + torch.eye(len(boxes))
    assert distances.min() > 1e-3


# K groups are K detectors


class Instead:
    """Noise that is drawn otherwise, ``noise`` in all else."""

    def __init__(self, noise: Any, draw: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.noise, self.draw = noise, draw

    def __getattr__(self, name: str) -> Any:
        return getattr(self.noise, name)

    def __call__(self, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return self.draw(labels, boxes)


class Recorded(Instead):
    """Noise that was drawn before: of all groups, or of one."""

    def __init__(self, noise: Any) -> None:
        super().__init__(noise, self.record)

    def record(self, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        self.drawn = self.noise(labels, boxes)
        return self.drawn

    def of(self, group: int) -> Instead:
        labels, boxes = (x[:, group : group + 1] for x in self.drawn)
        return Instead(self.noise, lambda *_: (labels, boxes))


def singles(model: DetectionTransformer) -> tuple[Outputs, list[DetectionTransformer]]:
    """One pass of all groups, and every group as a detector of its own with the same noise."""
    model.queries.noise = recorded = Recorded(model.queries.noise)
    together, each = (
        seeded(model),
        [alone(model, k).train() for k in range(model.recipe.num_groups)],
    )
    for k, single in enumerate(each):
        single.queries.noise = recorded.of(k)
    return together, each


def test_k_groups_with_denoising_are_k_detectors(model: DetectionTransformer) -> None:
    together, each = singles(model)
    for k, single in enumerate(each):
        for ours, theirs in zip(together.layers, single(IMAGES, TARGETS).layers, strict=True):
            assert difference(ours.logits[:, k], theirs.logits[:, 0]) < 1e-5
            assert difference(ours.boxes[:, k], theirs.boxes[:, 0]) < 1e-5


def test_losses_and_gradients_are_the_mean_of_theirs(model: DetectionTransformer) -> None:
    criterion, (together, each) = model.recipe.criterion(), singles(model)
    losses = criterion(together, TARGETS)
    theirs = [criterion(single(IMAGES, TARGETS), TARGETS) for single in each]
    assert all(found.keys() == losses.keys() for found in theirs)
    assert any("denoising" in name for name in losses)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(
            sum(found[name].item() for found in theirs) / len(each), rel=1e-5
        )
    total(losses).backward()
    for found in theirs:
        (total(found) / len(each)).backward()
    axes, parameters = grouped(model.recipe), [dict(single.named_parameters()) for single in each]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts = [p[name].grad for p in parameters]
            expected = torch.cat(parts) if name in axes else torch.stack(parts).sum(0)
            assert difference(parameter.grad, expected) < 1e-4 * max(
                1.0, expected.abs().max().item()
            )


# the loss


def test_the_denoising_loss_is_that_of_every_slot_and_its_own_object(
    model: DetectionTransformer,
) -> None:
    """Written out, slot by slot: the first of an object's slots is to find it again, others of it are to be refused,
    and so are empty ones, or they are told nothing (DN-DETR). Over K * copies * objects."""
    with torch.no_grad():
        outputs = seeded(model)
        losses = model.recipe.criterion()(outputs, TARGETS)
    said, known, noise = denoising(outputs)[-1], outputs.queries.denoising, model.queries.noise
    assert known is not None
    size, weights = (
        known.num_queries // known.copies,
        {t.name: t.loss_weight for t in model.recipe.terms()},
    )
    most = size // noise.shown
    sums = dict.fromkeys(("focal", "l1", "giou"), 0.0)
    for image, k, slot in itertools.product(
        range(len(TARGETS)), range(model.recipe.num_groups), range(known.num_queries)
    ):
        objects, (shown, t) = TARGETS[image], divmod(slot % size, most)
        logits, box = said.logits[image, k, slot], said.boxes[image, k, slot]
        wanted = torch.zeros_like(logits)
        if shown == 0 and t < len(objects):
            wanted[objects.labels[t]] = 1.0
            sums["l1"] += float((box - objects.boxes[t]).abs().sum())
            sums["giou"] += float(
                generalized_box_iou_loss(*map(cxcywh_to_xyxy, (box, objects.boxes[t])))
            )
        elif noise.shown == 1:
            continue
        p = logits.sigmoid()
        right = wanted * p + (1 - wanted) * (1 - p)
        alpha = 0.25 * wanted + 0.75 * (1 - wanted)
        sums["focal"] += float((alpha * (1 - right) ** 2 * -right.log()).sum())
    last, count = (
        len(outputs.layers) - 1,
        model.recipe.num_groups * known.copies * sum(map(len, TARGETS)),
    )
    for name, value in sums.items():
        assert losses[f"layer{last}-denoising/{name}"].item() == pytest.approx(
            weights[name] * value / count, rel=1e-4
        )


def test_who_is_told_nothing_learns_nothing(model: DetectionTransformer) -> None:
    outputs = seeded(model)
    for layer in outputs.layers:
        layer.logits.retain_grad()
    total(model.recipe.criterion()(outputs, TARGETS)).backward()
    assert outputs.queries.denoising is not None
    nothing = outputs.queries.denoising.unsupervised.expand(-1, model.recipe.num_groups, -1)
    assert nothing.any() == (model.queries.noise.shown == 1)
    for layer in outputs.layers:
        front = layer.logits.grad[:, :, : nothing.shape[-1]]  # type: ignore[index]
        assert front[nothing].abs().sum() == 0
        assert front[~nothing].abs().min() > 0


@pytest.mark.parametrize("num_groups", [1, 3])
def test_without_any_object_the_denoising_loss_is_zero_and_every_parameter_learns(
    recipe: Recipe, num_groups: int
) -> None:
    """So every process of a distributed run has the same losses and gradients, whatever its images hold."""
    model, empty = build(with_groups(recipe, num_groups)).train(), [target(0)] * 3
    losses = recipe.criterion()(model(IMAGES, empty), empty)
    full = recipe.criterion()(seeded(model), TARGETS)
    assert losses.keys() == full.keys()
    assert all(loss == 0 for name, loss in losses.items() if "denoising" in name)
    total(losses).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_denoising_in_the_primary_group_alone_is_the_first_of_k(recipe: Recipe) -> None:
    primary = type("Primary", (type(recipe),), {"denoise": staticmethod(denoise_in_primary)})(
        **vars(recipe)
    )
    model = build(primary).train()
    together, each = singles(model)
    criterion = primary.criterion()
    losses, first = criterion(together, TARGETS), criterion(each[0](IMAGES, TARGETS), TARGETS)
    for name, loss in losses.items():
        if "denoising" in name:
            assert loss.item() == pytest.approx(first[name].item(), rel=1e-5)
    grad = torch.autograd.grad(
        total({n: v for n, v in losses.items() if "denoising" in n}), together.layers[0].boxes
    )[0]
    assert grad[:, 1:].abs().max() == 0


# details


def test_with_joint_attention_no_group_sees_the_answers_of_another(recipe: Recipe) -> None:
    """Table 7 (c) with denoising: queries of all groups attend to each other, and denoising ones are hidden still."""
    joint = type("Joint", (type(recipe),), {"compete": staticmethod(jointly)})(**vars(recipe))
    model = build(joint).train()
    with torch.no_grad():
        before = seeded(model)
        front = slice(before.queries.num_denoising)
        told = changed(model, lambda queries: moved(queries, slice(None), 1, front))
        seen = changed(model, lambda queries: moved(queries, slice(None), 1, -1))
    for a, b in zip(matching(before), matching(told)):
        assert torch.equal(a.logits, b.logits)
    assert torch.equal(denoising(before)[-1].logits[:, 0], denoising(told)[-1].logits[:, 0])
    assert difference(matching(before)[-1].logits[:, 0], matching(seen)[-1].logits[:, 0]) > 1e-6


def test_attention_is_fused_with_denoising(model: DetectionTransformer) -> None:
    with sdpa_kernel(FUSED):
        total(model.recipe.criterion()(seeded(model), TARGETS)).backward()


def test_recomputing_activations_gives_the_same_gradients_with_denoising(recipe: Recipe) -> None:
    plain, frugal = build(recipe).train(), build(recipe.with_options(recompute=True)).train()
    for model in (plain, frugal):
        total(recipe.criterion()(seeded(model), TARGETS)).backward()
    for a, b in zip(plain.parameters(), frugal.parameters()):
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-6)


def test_autocast_keeps_denoising_losses_finite(model: DetectionTransformer) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.recipe.criterion()(seeded(model), TARGETS)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_more_objects_than_denoising_queries_are_noised_once(model: DetectionTransformer) -> None:
    crowd = [target(model.recipe.num_denoising + 3), target(1), target(0)]
    outputs = model(IMAGES, crowd)
    assert outputs.queries.num_denoising == model.queries.noise.shown * (
        model.recipe.num_denoising + 3
    )
    assert all(loss.isfinite() for loss in model.recipe.criterion()(outputs, crowd).values())


def test_denoising_queries_start_at_their_noised_objects(model: DetectionTransformer) -> None:
    """Without noise: at the objects themselves, with their labels' embedding."""
    model.queries.noise = noise = Instead(
        model.queries.noise, lambda labels, boxes: (labels, boxes)
    )
    queries = seeded(model).queries
    objects, known = Objects.from_targets(TARGETS), queries.denoising
    assert known is not None
    front = (queries.reference, queries.content)
    boxes, content = (
        x[:, :, : known.num_queries].unflatten(2, (known.copies, noise.shown, -1)) for x in front
    )
    for image, count in enumerate(objects.counts):
        for t in range(count):
            assert torch.allclose(
                boxes[image, ..., t, :], objects.boxes[image, t].clamp(1e-3, 1 - 1e-3), atol=1e-5
            )
            label = model.queries.labels(objects.labels[image, t])
            assert torch.equal(
                content[image, ..., t, :], label.expand_as(content[image, ..., t, :])
            )
