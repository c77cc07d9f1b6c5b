"""Batch norm with fixed statistics, folded into the convolution before it.

Normalising is then a multiplication of weights, not of maps: no pass over a map, forward or backward. Weights and
statistics keep the names that all checkpoints have for them, and the weights learn as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Self

from torch import Tensor, nn


class FrozenNorm(nn.Module):
    """A scale and a shift of every channel, which `NormedConv2d` applies: [B,C,H,W] -> the same."""

    weight: Tensor  # this and the next three [C], as checkpoints have them
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    scale: Tensor  # [C], derived from those
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())
        self.register_load_state_dict_post_hook(lambda module, _: module.derive())
        self.derive()

    def derive(self) -> None:
        """Scale and shift from what a checkpoint has; whoever changes that otherwise than by loading calls this."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", self.bias - self.running_mean * scale, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.derive()  # in the precision that the module has now
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x


class NormedConv2d(nn.Conv2d):
    """A convolution without a bias, and the frozen norm that follows it in the network."""

    def __init__(self, conv: nn.Conv2d, norm: FrozenNorm) -> None:
        options: dict[str, Any] = {
            name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")
        }
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            bias=False,
            device="meta",
            **options,
        )  # type: ignore[arg-type]
        self.weight = conv.weight
        self.__dict__["norm"] = norm  # not as a submodule: the network has it

    def forward(self, x: Tensor) -> Tensor:
        norm: FrozenNorm = self.__dict__["norm"]
        return self._conv_forward(x, self.weight * norm.scale.view(-1, 1, 1, 1), norm.shift)


def freeze_norms(network: nn.Module) -> nn.Module:
    """Every batch norm of a ResNet of timm's, each right behind its convolution, frozen in place."""
    for block in list(network.modules()):
        for (first, conv), (second, norm) in pairwise(list(block.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                frozen = FrozenNorm(norm)
                block.register_module(second, frozen)
                block.register_module(first, NormedConv2d(conv, frozen))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    return network
