"""What groups on a detector of transformers promise, for every family."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import groupdetr.huggingface as ghf
from groupdetr.huggingface import own_groups
from groupdetr.huggingface.families import (
    FAMILIES,
    OWN_GROUPS,
    family_of,
    family_with_own_groups,
)
from groupdetr.huggingface.query_embedding import GroupedEmbedding
from tests.huggingface.detectors import DETECTORS, NUM_QUERIES, aligned, batch

# Those whose loss over groups is that of transformers
OWN_LOSS = [family.name for family in OWN_GROUPS]

every_detector = pytest.mark.parametrize("name", DETECTORS)


def detector(name: str) -> Any:
    """A detector whose random numbers depend neither on other tests nor on denoising."""
    torch.manual_seed(0)
    model = DETECTORS[name]()
    # Without noise, the denoising queries of separate runs are the same.
    for option in ("label_noise_ratio", "box_noise_scale"):
        if hasattr(model.config, option):
            setattr(model.config, option, 0.0)
    return model


def training(model: Any) -> Any:
    """A model in training mode, with the statistics of its batch norms fixed.

    A few channels of two small images often have no variance at all, and the gradients of a batch
    norm would be as large as the inverse of its epsilon.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def continue_random_numbers(models: list[Any]) -> None:
    """Let the losses of models that are run one after the other use one stream of random numbers.

    It begins with the first model, and only loss modules draw from it.
    """
    state = torch.Generator().manual_seed(1).get_state()

    def begin(_module: nn.Module, _args: Any) -> None:
        torch.set_rng_state(state)

    def end(_module: nn.Module, _args: Any, _output: Any) -> None:
        state.copy_(torch.get_rng_state())

    for model in models:
        if hasattr(model, "criterion"):
            model.criterion.register_forward_pre_hook(begin)
            model.criterion.register_forward_hook(end)


def own_parts(model: Any) -> tuple[nn.Module, tuple[str, ...]]:
    """The base model, and the names of its modules that every group has a copy of."""
    has_own = family_with_own_groups(model)
    if has_own is not None:
        return model.get_submodule(has_own.base), (*own_groups.TABLES, *own_groups.HEADS)
    family = family_of(model)
    return model.get_submodule(family.base), family.queries(model.config).parts


def own_parameters(model: Any, group: int) -> list[tuple[Tensor, Tensor | None]]:
    """The parameters that only one group has, and their gradients; a plain model has group 0."""
    base, names = own_parts(model)
    found: list[tuple[Tensor, Tensor | None]] = []
    for name in names:
        part = getattr(base, name)
        if isinstance(part, nn.Embedding) and group and isinstance(part, GroupedEmbedding):
            grad = part.other_groups.grad
            found.append((part.other_groups[group - 1], None if grad is None else grad[group - 1]))
        elif isinstance(part, nn.Embedding):
            table = part._parameters["weight"]
            assert table is not None
            grads = (None,) * 11 if table.grad is None else table.grad.split(NUM_QUERIES)
            found.append((table.split(NUM_QUERIES)[group], grads[group]))
        else:
            if isinstance(part, nn.ModuleList):
                part = part[group]
            elif group:
                part = model.other_groups[name][group - 1]
            found.extend((parameter, parameter.grad) for parameter in part.parameters())
    return found


def predictions(output: Any) -> list[str]:
    """The names of the predictions, which have an axis of queries."""
    names = ("logits", "pred_boxes", "pred_masks", "class_queries_logits", "masks_queries_logits")
    return [name for name in names if name in output]


def tensors_of(output: Any) -> dict[str, Tensor]:
    """Every tensor that a detector returns, by name."""
    found: dict[str, Tensor] = {}
    for name, value in output.items():
        values = value if isinstance(value, list | tuple) else [value]
        for i, tensor in enumerate(values):
            if isinstance(tensor, Tensor):
                found[f"{name}.{i}"] = tensor
    return found


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_every_class_is_tested() -> None:
    classes = {type(build()).__name__ for build in DETECTORS.values()}
    assert classes == {family.model_class for family in (*FAMILIES, *OWN_GROUPS)}


@every_detector
def test_perturbing_one_group_moves_no_other(name: str) -> None:
    num_groups = 4
    model = ghf.with_groups(detector(name), num_groups).train()
    inputs = batch(model)
    before = model(**inputs)
    with torch.no_grad():
        for parameter, _ in own_parameters(model, 2):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    after = model(**inputs)

    for field in predictions(before):
        groups_before = before[field].chunk(num_groups, 1)
        groups_after = after[field].chunk(num_groups, 1)
        moved = [not torch.equal(*pair) for pair in zip(groups_before, groups_after)]
        assert moved == [group == 2 for group in range(num_groups)], field


@every_detector
def test_groups_in_one_pass_are_detectors_of_one_group(name: str) -> None:
    """Predictions, losses and gradients are those of K detectors that share all other weights."""
    model = training(ghf.with_groups(detector(name), 3))
    inputs = batch(model)
    singles = [ghf.without_groups(copy.deepcopy(model), group) for group in range(3)]
    # Mask2Former compares masks at random points: the same ones in both runs.
    continue_random_numbers([model])
    continue_random_numbers(singles)
    outputs = model(**inputs)
    outputs.loss.backward()
    alone = [single(**inputs) for single in singles]
    for output in alone:
        output.loss.backward()

    for field in predictions(outputs):
        joined = torch.cat([output[field] for output in alone], 1)
        assert_close(outputs[field], joined, rtol=1e-4, atol=1e-5)
    if name == "RF-DETR, instance segmentation":
        return  # transformers compares the masks of all its groups at the same random points
    assert_close(outputs.loss, torch.stack([output.loss for output in alone]).mean())
    for term, value in (outputs.get("loss_dict") or {}).items():
        if "cardinality" in term:
            continue  # not a loss; transformers counts it for all groups of LW-DETR together
        expected = torch.stack([torch.as_tensor(output.loss_dict[term]) for output in alone]).mean()
        assert_close(torch.as_tensor(value), expected, rtol=1e-4, atol=1e-5)

    together = gradients(model)
    of_singles = [gradients(single) for single in singles]
    # Some gradients are zero but for rounding.
    noise = 1e-5 * max(float(gradient.abs().max()) for gradient in together.values())
    _, own = own_parts(model)
    for parameter, gradient in together.items():
        if "other_groups" in parameter or set(own) & set(parameter.split(".")):
            continue
        expected = sum(single[parameter] for single in of_singles) / 3
        assert_close(gradient, expected, rtol=1e-3, atol=noise, msg=f"gradient of {parameter}")
    for group, single in enumerate(singles):
        of_group = [gradient for _, gradient in own_parameters(model, group)]
        for gradient, alone in zip(of_group, own_parameters(single, 0), strict=True):
            assert gradient is not None
            assert alone[1] is not None
            assert_close(gradient, alone[1] / 3, rtol=1e-3, atol=noise)


@every_detector
def test_answers_are_those_of_the_plain_detector_bit_for_bit(name: str) -> None:
    """Before training as the original answers, and after it as the plain detector does."""
    plain = detector(name).eval()
    model = ghf.with_groups(copy.deepcopy(plain), 3)
    inputs = batch(model)
    if name in OWN_LOSS:
        # The loss function of these in transformers does not know that the model is in `eval` mode.
        trained, inputs = inputs, {"pixel_values": inputs["pixel_values"]}
    else:
        trained = inputs

    def assert_equal_answers(first: Any, second: Any) -> None:
        torch.manual_seed(0)  # Mask2Former compares masks at random points
        with torch.no_grad():
            answers = tensors_of(first(**inputs))
            torch.manual_seed(0)
            expected = tensors_of(second(**inputs))
        assert answers.keys() == expected.keys()
        for field, tensor in answers.items():
            assert torch.equal(tensor, expected[field]), field

    assert_equal_answers(model.eval(), plain)
    step(model.train(), trained)
    assert_equal_answers(model.eval(), ghf.without_groups(copy.deepcopy(model)))


def step(model: Any, inputs: dict[str, Any]) -> None:
    """One step of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model(**inputs).loss.backward()
    optimizer.step()


@every_detector
def test_a_trained_detector_is_loaded_by_transformers_alone(name: str, tmp_path: Path) -> None:
    """Nothing of the groups is left, in the weights nor in the configuration."""
    original = detector(name)
    model = ghf.with_groups(copy.deepcopy(original), 3).train()
    inputs = batch(model)
    step(model, inputs)
    ghf.without_groups(model).save_pretrained(tmp_path)

    loaded, report = type(original).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.state_dict().keys() == original.state_dict().keys()
    assert model.config.to_dict() == {**original.config.to_dict()} | {
        key: model.config.to_dict()[key]
        for key in ("architectures", "dtype", "transformers_version")
        if key in model.config.to_dict()
    }
    inputs = {"pixel_values": inputs["pixel_values"]}
    with torch.no_grad():
        answers = tensors_of(aligned(loaded).eval()(**inputs))
        expected = tensors_of(model.eval()(**inputs))
    for field, tensor in answers.items():
        assert torch.equal(tensor, expected[field]), field


@pytest.mark.parametrize("name", [name for name in DETECTORS if name not in OWN_LOSS])
def test_images_without_objects_have_a_finite_loss_of_all_groups(name: str) -> None:
    """The mean over groups, also where the number of objects is clamped to one."""
    model = training(ghf.with_groups(detector(name), 3))
    inputs = batch(model, num_objects=(0, 0))
    singles = [ghf.without_groups(copy.deepcopy(model), group) for group in range(3)]
    loss = model(**inputs).loss
    loss.backward()
    assert loss.isfinite()
    assert_close(loss, torch.stack([single(**inputs).loss for single in singles]).mean())
