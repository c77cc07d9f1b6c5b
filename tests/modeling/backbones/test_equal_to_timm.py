"""Networks that are written here although timm has them have its names, weights and maps."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from groupdetr.modeling.backbones.efficientnet_lite import LITE0, efficientnet_lite0
from groupdetr.modeling.backbones.resnet import RESNET50, resnet50, small_resnet
from groupdetr.modeling.backbones.timm_backbone import timm_backbone

PIXELS = torch.randn(2, 3, 75, 98, generator=torch.Generator().manual_seed(0))


def assert_same_start(ours: nn.Module, our_next: Tensor, theirs: nn.Module) -> None:
    """Parameters and the next random number must be equal. Frozen norms have no parameters."""
    expected = dict(theirs.named_parameters())
    parameters = dict(ours.named_parameters())
    assert parameters.keys() <= expected.keys()
    for name in expected.keys() - parameters.keys():
        assert isinstance(theirs.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, expected[name]), name
    assert torch.equal(our_next, torch.rand(1)), "other random numbers follow"


def test_resnet50_starts_as_that_of_timm() -> None:
    """Its maps are compared with torchvision's in test_resnet.py."""
    for dilated, levels in ((False, (2, 3, 4)), (True, (4,))):
        torch.manual_seed(0)
        ours = resnet50(False, dilated, levels).network
        our_next = torch.rand(1)
        torch.manual_seed(0)
        stride = 16 if dilated else 32
        theirs = timm.create_model(
            RESNET50, features_only=True, out_indices=levels, output_stride=stride
        )
        assert_same_start(ours, our_next, theirs)
        counted = {name for name in theirs.state_dict() if "num_batches" not in name}
        assert ours.state_dict().keys() == counted


def test_the_small_resnet_is_that_of_timm() -> None:
    torch.manual_seed(0)
    ours = small_resnet((16, 24, 40), (1, 2, 1), levels=(2, 3)).network
    our_next = torch.rand(1)
    torch.manual_seed(0)
    theirs = timm.create_model(
        "resnet10t",
        features_only=True,
        out_indices=(2, 3),
        channels=(16, 24, 40, 40),
        layers=(1, 2, 1, 1),
        norm_layer="groupnorm1",
        stem_width=8,
        zero_init_last=False,
    )
    assert_same_start(ours, our_next, theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for x, y in zip(ours(PIXELS), theirs(PIXELS), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_efficientnet_lite0_is_that_of_timm() -> None:
    """With batch norms that are trained; test_efficientnet_lite.py folds them."""
    ours = efficientnet_lite0(None, (4, 16), frozen_stages=1, multiple=64, bgr=True)
    theirs = timm_backbone(LITE0, False, (4, 16), frozen_stages=1, multiple=64, bgr=True)
    expected_std = {name: parameter.std() for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if parameter.numel() > 10_000:
            assert torch.isclose(parameter.std(), expected_std[name], rtol=0.05)
    ours.load_state_dict(theirs.state_dict())
    assert ours.channels == theirs.channels
    for x, y in zip(ours(PIXELS), theirs(PIXELS), strict=True):
        assert torch.equal(x, y)
    trained = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
    assert trained == [name for name, p in theirs.named_parameters() if p.requires_grad]
    for name in trained:
        assert ours.lr_factor(name, 0.5) == theirs.lr_factor(name, 0.5)
