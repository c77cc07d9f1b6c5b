"""Our ResNet-50 equals torchvision's with frozen batch norm, plain and dilated (DC5).

It freezes the same parameters as DETR.
"""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from groupdetr.modeling.backbones.resnet import resnet50


def theirs(dilated: bool) -> nn.Module:
    """Return torchvision's network with norms that are not the identity.

    Small norm weights keep the features of order one.
    """
    torch.manual_seed(0)
    network = torchvision.models.resnet50(
        replace_stride_with_dilation=[False, False, dilated],
        norm_layer=torchvision.ops.FrozenBatchNorm2d,
    )
    for name, value in network.named_buffers():
        value.uniform_(0.5, 1.0) if name.endswith(("weight", "var")) else value.normal_(0, 0.1)
    return network.eval()


def features(network: nn.Module, pixels: Tensor) -> Tensor:
    children = dict(network.named_children())
    x = children["maxpool"](children["relu"](children["bn1"](children["conv1"](pixels))))
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = children[name](x)
    return x


@pytest.mark.parametrize("dilated", [False, True])
def test_features_are_torchvisions_even_in_training_mode(dilated: bool) -> None:
    network, ours = theirs(dilated), resnet50(pretrained=False, dilated=dilated)
    state = {
        name: value for name, value in network.state_dict().items() if not name.startswith("fc.")
    }
    ours.network.load_state_dict(state)
    pixels = torch.randn(2, 3, 64, 96)
    ours.train()  # batch norms are frozen
    with torch.no_grad():
        (coarsest,), expected = ours(pixels), features(network, pixels)
    assert coarsest.shape == ((2, 2048, 4, 6) if dilated else (2, 2048, 2, 3))
    assert ((coarsest - expected).abs().max() / expected.abs().max()) < 1e-5
    assert ours.network.state_dict().keys() == state.keys()
