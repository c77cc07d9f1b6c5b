"""The criterion for flat outputs of any detector: sigmoid and softmax classes, K groups."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal, Softmax
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.targets import Target

L, B, K, N, CLASSES = 2, 3, 4, 5, 6
BOX_TERMS = [L1(5.0, 5.0), GIoU(2.0, 2.0)]
# The last image has more objects than a group has queries.
COUNTS = (2, 0, 7)


def flat_predictions(num_logits: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(L, B, K * N, num_logits, generator=generator)
    boxes = 0.1 + 0.3 * torch.rand(L, B, K * N, 4, generator=generator)
    return logits, boxes


def make_targets() -> list[Target]:
    generator = torch.Generator().manual_seed(1)
    targets = []
    for count in COUNTS:
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        targets.append(Target(labels, 0.1 + 0.3 * torch.rand(count, 4, generator=generator)))
    return targets


@pytest.mark.parametrize(
    ("classification", "num_logits"),
    [(Focal(2.0, 2.0), CLASSES), (Softmax(1.0, 1.0), CLASSES + 1)],
    ids=["focal", "softmax"],
)
def test_the_losses_of_k_groups_are_the_mean_of_those_of_single_groups(
    classification: Focal | Softmax, num_logits: int
) -> None:
    criterion, targets = SetCriterion([classification, *BOX_TERMS]), make_targets()
    logits, boxes = flat_predictions(num_logits)
    losses = criterion(Outputs.from_flat(logits, boxes, num_groups=K), targets)
    singles = []
    for group_logits, group_boxes in zip(logits.chunk(K, 2), boxes.chunk(K, 2)):
        outputs = Outputs.from_flat(group_logits, group_boxes, num_groups=1)
        singles.append(criterion(outputs, targets))
    assert len(losses) == 3 * L
    for name, loss in losses.items():
        mean = sum(single[name].item() for single in singles) / K
        assert loss.item() == pytest.approx(mean, rel=1e-5)


def detr_losses(logits: Tensor, boxes: Tensor, targets: list[Target]) -> dict[str, Tensor]:
    """DETR's losses of one layer and one group [B,N,.] from torch, torchvision and scipy."""
    classes = torch.full((B, N), CLASSES)
    l1, giou = [], []
    for image, target in enumerate(targets):
        distances = torch.cdist(boxes[image], target.boxes, p=1)
        corners, target_corners = (cxcywh_to_xyxy(x) for x in (boxes[image], target.boxes))
        overlaps = generalized_box_iou(corners, target_corners)
        scores = logits[image].softmax(-1)[:, target.labels]
        cost = -scores + 5 * distances - 2 * overlaps
        query, matched = linear_sum_assignment(cost.detach())
        classes[image, query] = target.labels[matched]
        l1.append(distances[query, matched].sum())
        giou.append((1 - overlaps[query, matched]).sum())
    weights = torch.tensor([1.0] * CLASSES + [0.1])
    num_objects = sum(COUNTS)
    return {
        "softmax": F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weights),
        "l1": 5 * torch.stack(l1).sum() / num_objects,
        "giou": 2 * torch.stack(giou).sum() / num_objects,
    }


def test_the_losses_with_a_softmax_and_their_gradients_are_those_of_detr() -> None:
    logits, boxes = (x[..., :N, :].requires_grad_() for x in flat_predictions(CLASSES + 1))
    criterion, targets = SetCriterion([Softmax(1.0, 1.0), *BOX_TERMS]), make_targets()
    ours = criterion(Outputs.from_flat(logits, boxes, num_groups=1), targets)
    theirs = {}
    for layer in range(L):
        for name, loss in detr_losses(logits[layer], boxes[layer], targets).items():
            theirs[f"layer{layer}/{name}"] = loss
    assert ours.keys() == theirs.keys()
    for name, loss in ours.items():
        assert loss.item() == pytest.approx(theirs[name].item(), rel=1e-5)

    our_gradients = torch.autograd.grad(sum(ours.values()), [logits, boxes])
    their_gradients = torch.autograd.grad(sum(theirs.values()), [logits, boxes])
    for x, y in zip(our_gradients, their_gradients):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
