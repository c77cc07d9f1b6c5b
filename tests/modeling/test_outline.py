"""A network without memory has the names, shapes and types of tensors that it has on a device."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from groupdetr.modeling.outline import without_memory
from groupdetr.registry import create_model, list_models

SMALL = [name for kind in ("tiny", "micro", "lite") for name in list_models(f"*-{kind}")]


@pytest.mark.parametrize("name", [name for name in SMALL if "/" not in name])
def test_an_outline_is_that_of_the_network(name: str) -> None:
    with without_memory():
        outline = create_model(name).state_dict()
    with torch.device("meta"):
        expected = create_model(name).state_dict()
    assert list(outline) == list(expected)
    for key, tensor in outline.items():
        assert tensor.is_meta
        assert (tensor.shape, tensor.dtype) == (expected[key].shape, expected[key].dtype), key


def test_tensors_with_values_are_computed_as_usual() -> None:
    values = torch.tensor([1.0, 2.0])
    with without_memory():
        doubled = values * 2
        stacked = torch.stack([values, values], dim=-1)
    assert doubled.tolist() == [2.0, 4.0]
    assert stacked.tolist() == [[1.0, 1.0], [2.0, 2.0]]


def of_a_plugin() -> list[Tensor]:
    """Return tensors as the constructors of others compute them."""
    return [
        torch.randn(2, 4, generator=torch.Generator().manual_seed(0)),
        torch.stack([torch.zeros(5)] * 3, -1) @ torch.zeros(3, 7),
        torch.stack(tensors=[torch.zeros(5)] * 3, dim=1),
        torch.arange(8) / 8,
        torch.arange(8).sin() + torch.arange(8) * 2,
    ]


def test_the_constructors_of_plugins_may_call_functions_in_any_way() -> None:
    with without_memory():
        outline = of_a_plugin()
    for tensor, expected in zip(outline, of_a_plugin(), strict=True):
        assert tensor.is_meta
        assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype)


def test_outlines_do_not_import_the_compiler() -> None:
    program = """
import sys
from groupdetr.modeling.outline import without_memory
from groupdetr.registry import create_model
with without_memory():
    for name in ("conditional-detr-lite", "dn-detr-tiny", "dino-lite", "mask2former-tiny"):
        create_model(name)
    for name in ("rf-detr-micro", "lw-detr-tiny", "rf-detr-seg-micro", "dab-detr-r50"):
        create_model(name)
print([name for name in ("torch._dynamo", "sympy", "timm", "torchvision") if name in sys.modules])
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert output.stdout.strip() == b"[]"
