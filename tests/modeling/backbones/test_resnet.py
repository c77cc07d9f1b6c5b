"""ResNets return the requested stages, and their frozen batch norms equal torchvision's."""

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
SHAPES = [(12, 17), (6, 9), (3, 5)]  # of stages 2 to 4, with strides 8, 16 and 32


def full_size(*levels: int) -> Backbone:
    return resnet50(pretrained=False, dilated=False, levels=levels)


def small(*levels: int) -> Backbone:
    return small_resnet(widths=(16, 24, 32, 48), depths=(1, 2, 1, 1), levels=levels)


@pytest.mark.parametrize(
    ("create", "channels"), [(full_size, [512, 1024, 2048]), (small, [24, 32, 48])]
)
def test_stages_2_to_4_have_strides_8_to_32(
    create: Callable[..., Backbone], channels: list[int]
) -> None:
    torch.manual_seed(0)
    all_stages = create(2, 3, 4)
    torch.manual_seed(0)
    last_stage = create(4)
    assert all_stages.channels == channels
    assert last_stage.channels == channels[-1:]
    assert all_stages.state_dict().keys() == last_stage.state_dict().keys()
    maps = all_stages(PIXELS)
    for x, width, (height, columns) in zip(maps, channels, SHAPES, strict=True):
        assert x.shape == (1, width, height, columns)
    assert torch.equal(maps[-1], last_stage(PIXELS)[0])


def test_a_small_resnet_may_have_fewer_than_four_stages() -> None:
    backbone = small_resnet(widths=(16, 24, 32), depths=(1, 1, 1), levels=(2, 3))
    assert [tuple(x.shape) for x in backbone(PIXELS)] == [(1, 24, 12, 17), (1, 32, 6, 9)]
    (last_stage,) = small_resnet(widths=(16, 24, 32), depths=(1, 1, 1))(PIXELS)
    assert last_stage.shape == (1, 32, 6, 9)


@pytest.mark.parametrize("levels", [(4,), (2, 3, 4)])
def test_the_frozen_parameters_do_not_depend_on_the_levels(levels: tuple[int, ...]) -> None:
    backbone = full_size(*levels)
    frozen = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == 23_232_512


@pytest.mark.parametrize(
    "change",
    [deepcopy, lambda x: x.double()],
    ids=["copied", "double"],
)
def test_frozen_norms_equal_batch_norms_in_evaluation_after_loading(
    change: Callable[[Any], Any],
) -> None:
    """Outputs and gradients of the weights are equal to torchvision's."""
    theirs = torchvision.models.resnet50().eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2.0)
            module.running_mean.normal_(std=0.1)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    backbone = full_size(4)
    backbone.network.load_state_dict(theirs.state_dict(), strict=False)
    ours = change(backbone)
    theirs.fc, theirs.avgpool = torch.nn.Identity(), torch.nn.Identity()
    dtype = next(ours.parameters()).dtype
    pixels = PIXELS.to(dtype)
    actual = ours(pixels)[0]
    expected = theirs.to(dtype)(pixels).view(1, 2048, 3, 5)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert (actual - expected).abs().max() < tolerance * expected.abs().max()
    actual.sum().backward()
    expected.sum().backward()
    name = "layer2.0.conv2.weight"
    gradient = ours.network.get_parameter(name).grad
    expected_gradient = theirs.get_parameter(name).grad
    difference = (gradient - expected_gradient).norm()
    assert difference < 100 * tolerance * expected_gradient.norm()


def test_weights_are_loaded_from_a_file(tmp_path: Path) -> None:
    source = torchvision.models.resnet50()
    torch.save(source.state_dict(), tmp_path / "resnet50.pth")
    backbone = resnet50(str(tmp_path / "resnet50.pth"), dilated=False, levels=(2, 3, 4))
    expected = {
        name: value
        for name, value in source.state_dict().items()
        if "fc." not in name and "num_batches_tracked" not in name
    }
    state = backbone.network.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
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
        (lambda state: {**state, "fc.bias": small}, "are not tensors"),
        (None, "there is no such weights file"),
    ],
)
def test_other_files_are_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]] | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "resnet50.pth"
    if change:
        torch.save(change(torchvision.models.resnet50().state_dict()), path)
    with pytest.raises(WeightsError, match=message):
        resnet50(str(path), dilated=False)
