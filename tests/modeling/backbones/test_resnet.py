"""Residual networks return the stages that are asked for, and one of several is what it is alone."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.resnet import resnet50, small_resnet

PIXELS = torch.randn(1, 3, 96, 130, generator=torch.Generator().manual_seed(0))
SHAPES = {2: (12, 17), 3: (6, 9), 4: (3, 5)}  # strides 8, 16, 32


def full(*levels: int) -> Backbone:
    return resnet50(pretrained=False, dilated=False, levels=levels)


def small(*levels: int) -> Backbone:
    return small_resnet(widths=(16, 24, 32, 48), depths=(1, 2, 1, 1), levels=levels)


@pytest.mark.parametrize(("make", "channels"), [(full, [512, 1024, 2048]), (small, [24, 32, 48])])
def test_stages_2_to_4_have_strides_8_to_32(
    make: Callable[..., Backbone], channels: list[int]
) -> None:
    torch.manual_seed(0)
    several = make(2, 3, 4)
    torch.manual_seed(0)
    last = make(4)
    assert (several.channels, last.channels) == (channels, channels[-1:])
    assert several.state_dict().keys() == last.state_dict().keys()
    maps = several(PIXELS)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (c, *shape) for c, shape in zip(channels, SHAPES.values())
    ]
    assert torch.equal(maps[-1], last(PIXELS)[0])


def test_a_small_network_need_not_have_four_stages() -> None:
    backbone = small_resnet(widths=(16, 24, 32), depths=(1, 1, 1), levels=(2, 3))
    assert [tuple(x.shape) for x in backbone(PIXELS)] == [(1, 24, 12, 17), (1, 32, 6, 9)]
    (default,) = small_resnet(widths=(16, 24, 32), depths=(1, 1, 1))(PIXELS)
    assert default.shape == (1, 32, 6, 9)


@pytest.mark.parametrize("levels", [(4,), (2, 3, 4)])
def test_what_is_frozen_does_not_depend_on_the_levels(levels: tuple[int, ...]) -> None:
    backbone = full(*levels)
    frozen = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == 23_232_512


@pytest.mark.parametrize(
    "change", [lambda x: x, deepcopy, lambda x: x.double()], ids=["as it is", "a copy", "double"]
)
def test_frozen_norms_are_batch_norms_in_evaluation_whatever_was_loaded(
    change: Callable[[Any], Any],
) -> None:
    """Nothing is left of them but a scale and a shift of the convolution before; weights learn through it."""
    backbone, theirs = full(4), torchvision.models.resnet50().eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2.0), module.running_mean.normal_(std=0.1)
            (
                torch.nn.init.uniform_(module.weight, 0.5, 1.5),
                torch.nn.init.normal_(module.bias, std=0.1),
            )
    backbone.network.load_state_dict(theirs.state_dict(), strict=False)
    ours, theirs.fc, theirs.avgpool = change(backbone), torch.nn.Identity(), torch.nn.Identity()
    dtype = next(ours.parameters()).dtype
    found, expected = (
        ours(PIXELS.to(dtype))[0],
        theirs.to(dtype)(PIXELS.to(dtype)).view(1, 2048, 3, 5),
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
    found.sum().backward(), expected.sum().backward()
    name = "layer2.0.conv2.weight"
    grad, wanted = ours.network.get_parameter(name).grad, theirs.get_parameter(name).grad
    assert (grad - wanted).norm() < 100 * tolerance * wanted.norm()


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    source = torchvision.models.resnet50()
    torch.save(source.state_dict(), tmp_path / "resnet50.pth")
    backbone = resnet50(str(tmp_path / "resnet50.pth"), dilated=False, levels=(2, 3, 4))
    theirs = {
        name: value
        for name, value in source.state_dict().items()
        if "fc." not in name and "num_b" not in name
    }
    assert backbone.network.state_dict().keys() == theirs.keys()
    assert all(
        torch.equal(value, theirs[name]) for name, value in backbone.network.state_dict().items()
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda state: {"a": state["fc.bias"]},
            "these are not the weights of torchvision's ResNet",
        ),
        (
            lambda state: {**state, "layer3.6.conv1.weight": torch.ones(1)},
            r"the backbone has no layer3\.6\.conv1\.weight",
        ),
        (
            lambda state: {n: x for n, x in state.items() if n[:8] != "layer3.5"},
            r"the file has no layer3\.5\.bn1\.bias",
        ),
        (
            lambda state: {**state, "conv1.weight": torch.ones(3)},
            r"of another shape: conv1\.weight",
        ),
        (lambda state: {**state, "fc.bias": small}, "asks to run code"),
        (None, "no weights there"),
    ],
)
def test_a_file_of_something_else_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]] | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "resnet50.pth"
    if change:
        torch.save(change(torchvision.models.resnet50().state_dict()), path)
    with pytest.raises(WeightsError, match=said):
        resnet50(str(path), dilated=False)
