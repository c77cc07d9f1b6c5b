"""The bottleneck block of ResNets, with sum and ReLU computed by the convolutions at inference."""

from __future__ import annotations

from torch import Tensor, nn

from groupdetr.modeling.backbones.frozen_batch_norm import FrozenBatchNorm, NormedConv2d
from groupdetr.modeling.convolution import computed_by_onednn

# The submodules of a block, in their order
PARTS = (
    *("conv1", "bn1", "act1"),
    *("conv2", "bn2", "act2"),
    *("conv3", "bn3", "act3"),
    "downsample",
)
# Those of timm's block that must not do anything
UNUSED = ("drop_block", "aa", "se", "drop_path")


class FoldedBottleneck(nn.Module):
    """A bottleneck block with the same submodules and, but for rounding, the same result.

    With float32 on a CPU and without gradients, it does not pass over the maps again for the ReLUs
    and for the sum with the shortcut. The norms of the block must be folded.
    """

    conv1: NormedConv2d
    conv2: NormedConv2d
    conv3: NormedConv2d
    act1: nn.Module
    act2: nn.Module
    act3: nn.Module
    downsample: nn.Module | None

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name in PARTS:
            self.register_module(name, getattr(block, name))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        if computed_by_onednn(x, self.conv1.weight):
            x = self.conv1.convolve(x, relu=True)
            x = self.conv2.convolve(x, relu=True)
            return self.conv3.convolve(x, relu=True, plus=shortcut)
        # Folded norms do nothing here.
        x = self.act1(self.conv1(x))
        x = self.act2(self.conv2(x))
        x = self.conv3(x)
        x += shortcut
        return self.act3(x)


def fold_bottlenecks(network: nn.Module, block_class: type[nn.Module]) -> None:
    """Replace every usual bottleneck block of a ResNet whose norms are folded, in place.

    ``block_class`` is the class of the blocks: that of timm, or `resnet.Bottleneck`.
    """
    for parent in list(network.modules()):
        for name, block in list(parent.named_children()):
            if type(block) is block_class and _is_usual(block):
                parent.register_module(name, FoldedBottleneck(block))


def _is_usual(block: nn.Module) -> bool:
    """Return whether a block has nothing but convolutions with folded norms, and ReLUs."""
    convolutions = (block.conv1, block.conv2, block.conv3)
    activations = (block.act1, block.act2, block.act3)
    unused = [getattr(block, name, None) for name in UNUSED]
    norms = (block.bn1, block.bn2, block.bn3)
    return (
        all(type(conv) is NormedConv2d for conv in convolutions)
        and all(type(activation) is nn.ReLU for activation in activations)
        and all(part is None or type(part) is nn.Identity for part in unused)
        and all(
            isinstance(norm, FrozenBatchNorm) and type(norm.act) is nn.Identity for norm in norms
        )
    )
