"""What makes it Group DETR: K groups are K weight-sharing detectors; inference is one of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.inference import use_group
from groupdetr.groups import attend_across_groups
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.outputs import Outputs

from .conftest import every_kind
from .detectors import (
    build,
    detector_input,
    detector_targets,
    parameters_of_groups,
    random_images,
    random_target,
    single_group_detector,
    with_choices,
)

IMAGES = random_images((2, 3), (3, 1))
TARGETS = [random_target(4), random_target(2, seed=3)]


def run(model: DetectionTransformer) -> Outputs:
    return model(detector_input(model.recipe, IMAGES))


def losses(model: DetectionTransformer) -> dict[str, Tensor]:
    torch.manual_seed(0)  # for the points at which masks are compared
    criterion = model.recipe.criterion()
    return criterion(run(model), detector_targets(model.recipe, TARGETS))


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([*losses.values()]).sum()


def max_difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def test_k_groups_in_one_pass_equal_k_weight_sharing_detectors(
    model: DetectionTransformer,
) -> None:
    outputs = run(model)
    for k in range(model.recipe.num_groups):
        single = run(single_group_detector(model, k).train())
        for ours, theirs in zip(outputs.layers, single.layers, strict=True):
            for a, b in zip(ours.query_tensors(), theirs.query_tensors(), strict=True):
                scale = max(1.0, b.abs().max().item())
                assert max_difference(a[:, k], b[:, 0]) < 1e-5 * scale
    last = outputs.layers[-1]
    assert max_difference(last.logits[:, 0], last.logits[:, 1]) > 1e-3, "the groups must differ"


def test_loss_and_gradient_are_the_means_of_their_losses_and_gradients(
    model: DetectionTransformer,
) -> None:
    """The gradient of shared weights. A group's own weights get 1/K of their gradient alone."""
    num_groups = model.recipe.num_groups
    group_losses = losses(model)
    total(group_losses).backward()
    singles = [single_group_detector(model, k).train() for k in range(num_groups)]
    single_losses = [losses(single) for single in singles]
    for single in single_losses:
        assert single.keys() == group_losses.keys()
        (total(single) / num_groups).backward()
    for name, loss in group_losses.items():
        mean = sum(single[name].item() for single in single_losses) / num_groups
        assert loss.item() == pytest.approx(mean, rel=1e-5)
    single_parameters = [dict(single.named_parameters()) for single in singles]
    assert_gradients_add_up(model, single_parameters)


def assert_gradients_add_up(
    model: DetectionTransformer, single_parameters: list[dict[str, torch.nn.Parameter]]
) -> None:
    """The gradients equal the sums of the single detectors', or their concatenation over groups."""
    with_group_axis = parameters_of_groups(model.recipe)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        single_gradients = [parameters[name].grad for parameters in single_parameters]
        if name in with_group_axis:
            expected = torch.cat(single_gradients)
        else:
            expected = torch.stack(single_gradients).sum(0)
        scale = max(1.0, expected.abs().max().item())
        assert max_difference(parameter.grad, expected) < 1e-4 * scale


def test_inference_equals_group_0_exactly(model: DetectionTransformer) -> None:
    with torch.no_grad():
        ours = run(model.eval())
        plain = run(single_group_detector(model, 0).eval())
    for a, b in zip(ours.final.query_tensors(), plain.final.query_tensors(), strict=True):
        assert torch.equal(a, b)
    assert ours.queries.content.shape[1] == 1


def test_any_group_can_run_at_inference_and_all_of_them_together(recipe: Recipe) -> None:
    model_of_group_0 = build(recipe.with_options(inference_group=0))
    for k in range(1, recipe.num_groups):
        model = build(recipe.with_options(inference_group=k)).eval()
        # The same weights in a model that runs group 0, from which the plain detector is built.
        model_of_group_0.load_state_dict(model.state_dict())
        plain = single_group_detector(model_of_group_0, k).eval()
        together = build(recipe.with_options(inference_group=None)).eval()
        together.load_state_dict(model.state_dict())
        with torch.no_grad():
            logits = run(plain).final.logits
            assert torch.equal(run(model).final.logits, logits)
            of_all_groups = run(together).final.logits.unflatten(1, (recipe.num_groups, -1))
        assert max_difference(of_all_groups[:, k], logits) < 1e-5


def test_some_groups_together_predict_the_same_as_each_of_them_alone(recipe: Recipe) -> None:
    """What fused groups of an evaluation run: their decoders, and no other ones."""
    model = build(recipe).eval()
    with torch.no_grad():
        with use_group(model, (0, 2)):
            together = run(model).final_of_groups
        for index, group in enumerate((0, 2)):
            with use_group(model, group):
                alone = run(model).final
            for a, b in zip(together.query_tensors(), alone.query_tensors(), strict=True):
                scale = max(1.0, b.abs().max().item())
                assert max_difference(a[:, index], b) < 1e-5 * scale
    assert together.logits.shape[1] == 2


def outputs_before_and_after_perturbing(
    model: DetectionTransformer, group: int
) -> tuple[Outputs, Outputs]:
    """Run the model, perturb the learned queries of one group, and run it again."""
    with torch.no_grad():
        before = run(model)
        for name in parameters_of_groups(model.recipe):
            rows = model.get_parameter(name)[group]
            # The size of a box may be the exponential of a number, so the change must be small.
            rows += 0.1 * torch.randn_like(rows)
        return before, run(model)


def test_perturbing_one_group_changes_no_other(model: DetectionTransformer) -> None:
    before, after = outputs_before_and_after_perturbing(model, group=1)
    for a, b in zip(before.layers, after.layers):
        for k in range(model.recipe.num_groups):
            for x, y in zip(a.query_tensors(), b.query_tensors(), strict=True):
                assert torch.equal(x[:, k], y[:, k]) == (k != 1)


@every_kind
def test_with_joint_attention_perturbing_one_group_changes_all(recipe: Recipe) -> None:
    """Table 7 (c). It also proves that the test above can fail."""
    joint = with_choices(recipe, group_attention=attend_across_groups)
    before, after = outputs_before_and_after_perturbing(build(joint).train(), group=1)
    for k in range(recipe.num_groups):
        a, b = before.layers[-1].logits[:, k], after.layers[-1].logits[:, k]
        assert max_difference(a, b) > 1e-6
