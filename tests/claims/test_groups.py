"""What makes it Group DETR: K groups are K detectors that share their weights, and inference is one of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from groupdetr.detectors.recipe import Recipe
from groupdetr.groups import jointly
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.outputs import Outputs

from .detectors import alone, build, grouped, images, shown, target, told

IMAGES = images((2, 3), (3, 1))
TARGETS = [target(4), target(2, seed=3)]


def see(model: DetectionTransformer) -> Outputs:
    return model(shown(model.recipe, IMAGES))


def losses(model: DetectionTransformer) -> dict[str, Tensor]:
    torch.manual_seed(0)  # of the points at which masks are compared
    return model.recipe.criterion()(see(model), told(model.recipe, TARGETS))


def total(named: dict[str, Tensor]) -> Tensor:
    return torch.stack([*named.values()]).sum()


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def test_k_groups_in_one_pass_are_k_detectors_that_share_their_weights(
    model: DetectionTransformer,
) -> None:
    together = see(model)
    for k in range(model.recipe.num_groups):
        single = see(alone(model, k).train())
        for ours, theirs in zip(together.layers, single.layers, strict=True):
            assert difference(ours.logits[:, k], theirs.logits[:, 0]) < 1e-5
            assert difference(ours.place[:, k], theirs.place[:, 0]) < 1e-5 * max(
                1.0, theirs.place.abs().max().item()
            )
    last = together.layers[-1]
    assert difference(last.logits[:, 0], last.logits[:, 1]) > 1e-3  # the groups do differ


def test_the_loss_is_the_mean_of_their_losses(model: DetectionTransformer) -> None:
    together = losses(model)
    each = [losses(alone(model, k).train()) for k in range(model.recipe.num_groups)]
    assert all(of_one.keys() == together.keys() for of_one in each)
    for name, loss in together.items():
        assert loss.item() == pytest.approx(
            sum(of_one[name].item() for of_one in each) / len(each), rel=1e-5
        )


def test_the_gradient_is_the_mean_of_their_gradients(model: DetectionTransformer) -> None:
    """Of shared weights; a group's own weights get their K-th of the gradient they would get alone."""
    count = model.recipe.num_groups
    total(losses(model)).backward()
    singles = [alone(model, k).train() for k in range(count)]
    for single in singles:
        (total(losses(single)) / count).backward()
    theirs = [dict(single.named_parameters()) for single in singles]
    axes = grouped(model.recipe)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts = [p[name].grad for p in theirs]
            expected = torch.cat(parts) if name in axes else torch.stack(parts).sum(0)
            assert difference(parameter.grad, expected) < 1e-4 * max(
                1.0, expected.abs().max().item()
            )


def test_inference_is_group_0_exactly(model: DetectionTransformer) -> None:
    with torch.no_grad():
        ours, plain = see(model.eval()), see(alone(model, 0).eval())
    assert torch.equal(ours.answer.logits, plain.answer.logits)
    assert torch.equal(ours.answer.place, plain.answer.place)
    assert ours.queries.content.shape[1] == 1


def test_any_group_can_be_the_one_that_is_kept(recipe: Recipe) -> None:
    for k in range(recipe.num_groups):
        model = build(recipe.with_options(inference_group=k)).eval()
        with torch.no_grad():
            assert torch.equal(see(model).answer.logits, see(alone_at_0(model, k)).answer.logits)


def alone_at_0(model: DetectionTransformer, group: int) -> DetectionTransformer:
    """The plain detector of a model that keeps another group than the first."""
    plain = build(model.recipe.with_options(inference_group=0))
    plain.load_state_dict(model.state_dict())
    return alone(plain, group).eval()


def test_all_groups_can_be_kept(recipe: Recipe) -> None:
    model = build(recipe.with_options(inference_group=None)).eval()
    with torch.no_grad():
        answer = see(model).answer
    assert answer.logits.shape[:2] == (2, recipe.num_groups * recipe.num_queries)


def after_moving(model: DetectionTransformer, group: int) -> tuple[Outputs, Outputs]:
    """Before and after the queries of one group were changed."""
    with torch.no_grad():
        before = see(model)
        for name in grouped(model.recipe):
            rows = model.get_parameter(name)[group]
            rows += torch.randn_like(rows)
        return before, see(model)


def test_moving_one_group_moves_no_other(model: DetectionTransformer) -> None:
    before, after = after_moving(model, group=1)
    for a, b in zip(before.layers, after.layers):
        for k in range(model.recipe.num_groups):
            assert torch.equal(a.logits[:, k], b.logits[:, k]) == (k != 1)
            assert torch.equal(a.place[:, k], b.place[:, k]) == (k != 1)


def test_with_joint_attention_moving_one_group_moves_all(recipe: Recipe) -> None:
    """Table 7 (c), and the proof that the test above can fail."""
    joint = type("Joint", (type(recipe),), {"compete": staticmethod(jointly)})
    before, after = after_moving(build(joint(**vars(recipe))).train(), group=1)
    for k in range(recipe.num_groups):
        assert difference(before.layers[-1].logits[:, k], after.layers[-1].logits[:, k]) > 1e-6
