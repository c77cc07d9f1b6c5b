"""Masks are matched and learned as Mask2Former's paper says, and its code."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from groupdetr.criterion.classification import Softmax
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.masks import AtPoints, Dice, PointEntropy
from groupdetr.groups import match_groups
from groupdetr.structures.masks import Bitmaps, Canvas, Masks
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Objects, Target

CLASSES, CHANNELS, POINTS = 5, 8, 64
GROUPS, QUERIES = 3, 7
HEIGHT, WIDTH = 96, 64  # of the padded images
TERMS = [Softmax(2.0, 2.0), PointEntropy(5.0, 5.0), Dice(5.0, 5.0)]


def canvas(images: int = 2) -> Canvas:
    pixels = torch.randn(images, CHANNELS, HEIGHT // 4, WIDTH // 4).requires_grad_()
    return Canvas(pixels, torch.tensor([[HEIGHT, WIDTH]] * images)).with_points(
        AtPoints(POINTS).drawn
    )


def outputs(stages: int = 2, images: int = 2, groups: int = GROUPS) -> Outputs:
    torch.manual_seed(0)
    pixels = canvas(images)
    axes = (images, groups, QUERIES)
    layers = [
        Predictions(
            torch.randn(*axes, CLASSES + 1).requires_grad_(),
            masks=Masks((0.5 * torch.randn(*axes, CHANNELS)).requires_grad_(), pixels),
        )
        for _ in range(stages)
    ]
    content = torch.zeros(*axes, CHANNELS)
    return Outputs(layers, Queries(content, content[:1, ..., :0]))


def targets(counts: Sequence[int]) -> list[Target]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for count in counts:
        coarse = torch.rand(count, 1, 6, 4, generator=generator)
        masks = F.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear")[:, 0] > 0.5
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        found.append(Target(labels, torch.full((count, 4), 0.5), Bitmaps.of(masks)))
    return found


def criterion(points: int = POINTS) -> SetCriterion:
    return SetCriterion(TERMS, match_groups, AtPoints(points))


# independent code: whole masks, sampled by torch


def sampled(masks: Tensor, points: Tensor) -> Tensor:
    """Masks [M,h,w] at points [P,2]: [M,P]."""
    grid = (2 * points - 1).expand(len(masks), 1, -1, -1)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0, 0]


def dense(target: Target) -> Tensor:
    masks = torch.zeros(len(target), HEIGHT, WIDTH)
    assert target.masks is not None
    start = 0
    for mask, (left, top, width, height) in zip(masks, target.masks.windows.tolist()):
        window = target.masks.pixels[start : start + width * height].view(height, width)
        mask[top : top + height, left : left + width] = window
        start += width * height
    return masks


def dice(said: Tensor, wanted: Tensor) -> Tensor:
    return 1 - (2 * (said * wanted).sum(-1) + 1) / (said.sum(-1) + wanted.sum(-1) + 1)


def cost_of(said: Predictions, target: Target, image: int, group: int) -> Tensor:
    """[N,T]"""
    points = said.masks.canvas.points[image, :POINTS]  # type: ignore[index]
    logits = sampled(said.masks.full()[image, group], points)[:, None]
    wanted = sampled(dense(target), points)[None].expand(QUERIES, -1, -1)
    entropy = F.binary_cross_entropy_with_logits(
        logits.expand_as(wanted), wanted, reduction="none"
    ).mean(-1)
    score = said.logits[image, group].softmax(-1)[:, target.labels]
    return -2 * score + 5 * entropy + 5 * dice(logits.sigmoid(), wanted)


def losses_of(said: Predictions, wanted: list[Target], n: float) -> dict[str, Tensor]:
    """Of one prediction, the mean over groups of Mask2Former's three losses."""
    sums = {name: torch.zeros(()) for name in ("softmax", "mask", "dice")}
    for group in range(GROUPS):
        classes = torch.full((len(wanted), QUERIES), CLASSES)
        for image, target in enumerate(wanted):
            query, of = linear_sum_assignment(cost_of(said, target, image, group).detach())
            classes[image, query] = target.labels[of]
            points, whole = said.masks.canvas.points[image], said.masks.full()[image, group]  # type: ignore[index]
            for q, t in zip(query, of):
                logits = sampled(whole[q][None], points)[0]
                order = logits[: 3 * POINTS].detach().abs().argsort()[: 3 * POINTS // 4]
                where = torch.cat([order, torch.arange(3 * POINTS, len(points))])
                truth = sampled(dense(target)[t][None], points[where])[0]
                sums["mask"] = sums["mask"] + F.binary_cross_entropy_with_logits(
                    logits[where], truth
                )
                sums["dice"] = sums["dice"] + dice(logits[where].sigmoid(), truth)
        weights = torch.tensor([1.0] * CLASSES + [0.1])
        entropy = F.cross_entropy(said.logits[:, group].flatten(0, 1), classes.flatten(), weights)
        sums["softmax"] = sums["softmax"] + entropy
    share = {"softmax": 2 / GROUPS, "mask": 5 / (GROUPS * n), "dice": 5 / (GROUPS * n)}
    return {name: share[name] * value for name, value in sums.items()}


# claims


def test_costs_are_those_of_whole_masks() -> None:
    said, wanted = outputs(), targets((4, 2))
    costs = criterion().costs(said.stages()[0], Objects.from_targets(wanted))
    for stage, layer in enumerate(said.layers):
        for image, target in enumerate(wanted):
            for group in range(GROUPS):
                expected = cost_of(layer, target, image, group).detach()
                found = torch.from_numpy(costs[stage, image, group, : len(target)].T)
                assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (QUERIES, 1)])
def test_losses_and_gradients_are_those_of_whole_masks(counts: tuple[int, int]) -> None:
    said, wanted = outputs(), targets(counts)
    found = criterion()(said, wanted)
    expected = {
        f"layer{stage}/{name}": value
        for stage, layer in enumerate(said.layers)
        for name, value in losses_of(layer, wanted, sum(counts)).items()
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4), name
    leaves = [x for layer in said.layers for x in (layer.logits, layer.place)] + [
        said.layers[0].masks.canvas.pixels
    ]
    ours, theirs = (
        torch.autograd.grad(sum(d.values()), leaves, retain_graph=True) for d in (found, expected)
    )
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, atol=1e-4 * b.abs().max().item())


def test_a_mean_stays_a_mean_and_a_sum_is_divided_by_the_groups() -> None:
    """Equal groups lose what one of them loses: nothing is divided by K that is a mean already."""
    said = outputs(groups=1)
    many = Outputs(
        [
            layer.of(layer.logits.expand(-1, 4, -1, -1), layer.place.expand(-1, 4, -1, -1))
            for layer in said.layers
        ],
        Queries(
            said.queries.content.expand(-1, 4, -1, -1), said.queries.reference.expand(-1, 4, -1, -1)
        ),
    )
    wanted = targets((3, 2))
    one, four = (criterion()(each, wanted) for each in (said, many))
    assert four.keys() == one.keys()
    for name, loss in one.items():
        assert four[name].item() == pytest.approx(loss.item(), rel=1e-5), name


def test_the_pieces_of_a_batch_lose_what_the_batch_does() -> None:
    """Also in the class term, whose weights are those of the whole batch."""
    said, wanted = outputs(), targets((4, 1))
    together = criterion()(said, wanted)
    mean = torch.tensor(5 / 2)
    parts = [criterion()(piece(said, row), wanted[row : row + 1], mean) for row in range(2)]
    for name, loss in together.items():
        assert sum(part[name].item() for part in parts) / 2 == pytest.approx(
            loss.item(), rel=1e-5
        ), name


def piece(said: Outputs, row: int) -> Outputs:
    here = slice(row, row + 1)
    whole = said.layers[0].masks.canvas
    part = Canvas(whole.pixels[here], whole.sizes[here], whole.points[here], whole.sampled[here])  # type: ignore[index]
    layers = [
        Predictions(layer.logits[here], masks=Masks(layer.masks.embedding[here], part))
        for layer in said.layers
    ]
    return Outputs(layers, Queries(said.queries.content[here], said.queries.reference))


def test_whole_masks_are_never_made() -> None:
    """No tensor of the criterion is as large as the masks of all queries at the canvas's size."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    few = 16
    torch.manual_seed(0)
    pixels = torch.randn(1, CHANNELS, 48, 48).requires_grad_()
    said = outputs(images=1, groups=16)
    drawn = Canvas(pixels, torch.tensor([[192, 192]])).with_points(AtPoints(few).drawn)
    layers = [Predictions(layer.logits, masks=Masks(layer.place, drawn)) for layer in said.layers]
    with Watch():
        losses = criterion(few)(Outputs(layers, said.queries), targets((4,)))
        sum(losses.values()).backward()  # type: ignore[union-attr]
    assert 0 < largest < 16 * QUERIES * 48 * 48 / 4


def test_targets_without_masks_are_refused() -> None:
    bare = [Target(target.labels, target.boxes) for target in targets((2, 1))]
    with pytest.raises(ValueError, match="have no masks"):
        criterion()(outputs(), bare)
