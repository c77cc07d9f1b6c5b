"""`groupdetr.isolation` on detectors with groups: the library's own measurement of leaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import groupdetr
import groupdetr.huggingface as ghf
from tests.huggingface.detectors import DETECTORS, batch

# Tables of queries, heads for proposals, and masks whose queries are [N,B,C]
KINDS = pytest.mark.parametrize("name", ["Conditional DETR", "RT-DETR", "Mask2Former"])


def detector(name: str) -> tuple[Any, dict[str, Any]]:
    """A detector with three groups in training mode, and images for it."""
    torch.manual_seed(0)
    model = ghf.with_groups(DETECTORS[name](), 3).train()
    return model, {"pixel_values": batch(model)["pixel_values"]}


@KINDS
def test_groups_and_images_are_isolated(name: str) -> None:
    model, images = detector(name)
    result = groupdetr.isolation(model, num_groups=3, inputs=images)
    assert result.holds
    assert result.num_queries == model._groupdetr_grouping.num_queries


@KINDS
def test_a_self_attention_across_groups_is_found_by_its_name(name: str) -> None:
    """Without the hooks on one layer, its queries attend across groups."""
    model, images = detector(name)
    (layer,) = [
        path
        for path, module in model.named_modules()
        if path.endswith("decoder.layers.1.self_attn") and "pixel_level" not in path
    ]
    self_attention = model.get_submodule(layer)
    self_attention._forward_pre_hooks.clear()
    self_attention._forward_hooks.clear()
    with torch.no_grad():
        for parameter in self_attention.parameters():
            parameter.mul_(20)  # new weights of transformers are small, and so would be the leak
    result = groupdetr.isolation(model, num_groups=3, inputs=images)
    assert not result.holds
    assert result.leaking_module is not None
    assert result.leaking_module.startswith(layer)


def test_all_groups_are_measured_in_evaluation_mode() -> None:
    """The model runs one group there. Its modes stay as they are, such as that of a frozen norm."""
    model, images = detector("Conditional DETR")
    model.eval()
    model.model.decoder.train()
    modes = [module.training for module in model.modules()]
    assert groupdetr.isolation(model, num_groups=3, inputs=images).holds
    assert [module.training for module in model.modules()] == modes


def test_another_number_of_groups_is_refused() -> None:
    model, images = detector("Conditional DETR")
    with pytest.raises(ValueError, match="the model has 3 groups, and num_groups is 11"):
        groupdetr.isolation(model, num_groups=11, inputs=images)
