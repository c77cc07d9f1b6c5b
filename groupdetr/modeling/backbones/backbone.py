"""The backbone of a detector: a network, its frozen parts, and its layer-wise learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.backbones.input_normalisation import InputNormalisation
from groupdetr.modeling.frozen import eval_frozen_modules


@dataclass(frozen=True)
class LayerDecay:
    """Layer-wise learning rate decay: the earlier a layer of the network, the lower its rate.

    The layer norms of these layers have no weight decay, and further parameters may have none.
    """

    # From first to last; a layer is given by the names of its submodules and parameters. A stem
    # whose rate follows from the decay is the first layer. A layer without names only counts: it
    # lowers the rates of those before it.
    layers: tuple[tuple[str, ...], ...] = ()
    stem: str = ""  # name of the submodule in front of the layers
    stem_factor: float = 1.0  # of the stem's learning rate, for any decay
    # Texts in the names of parameters of the network without weight decay, such as "bias"
    undecayed: tuple[str, ...] = ()


class Backbone(nn.Module):
    """Images [...,3,H,W] -> feature maps [B,C_l,H_l,W_l] from fine to coarse.

    The leading axes of the images are flattened to B. ``channels`` are the C_l. The submodules
    named in ``frozen`` are not trained. ``normalisation`` converts the images, which are normalised
    by ImageNet's constants, to those of the network; None if these are the same. ``augment`` is
    applied to the images, which are then padded with zeros until both sides in pixels are a
    multiple of ``multiple``.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: Sequence[int],
        frozen: tuple[str, ...] = (),
        layer_decay: LayerDecay | None = None,
        multiple: int = 1,
        augment: nn.Module | None = None,
        normalisation: InputNormalisation | None = None,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.channels = list(channels)
        self.multiple = multiple
        self.layer_decay = layer_decay or LayerDecay()
        self.augment = augment or nn.Identity()
        self.normalisation = normalisation
        for name in frozen:
            network.get_submodule(name).requires_grad_(False)
        self.train(network.training)

    def forward(self, pixels: Tensor, padding: Tensor | None = None) -> list[Tensor]:
        """``padding`` [...,H,W] is True where there is no image; None if there is no padding.

        Only the conversion to other normalisation constants uses it: padding remains zero.
        """
        pixels = pixels.flatten(0, -4)
        if self.normalisation is not None:
            pixels = self.normalisation(pixels, padding)
        pixels = self.augment(pixels)
        if self.multiple > 1:
            pixels = pad_to_multiple(pixels, self.multiple)
        return self.network(pixels.contiguous(memory_format=torch.channels_last))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules but the frozen ones, which are always in evaluation mode."""
        super().train(mode)
        eval_frozen_modules(self)
        return self

    @property
    def supports_layer_decay(self) -> bool:
        """True if the backbone has layers whose learning rates can differ."""
        return bool(self.layer_decay.layers)

    def lr_factor(self, name: str, decay: float) -> float:
        """Return the factor of the learning rate of parameter ``name``.

        The last layer has ``decay``, the one before it decay**2, and so on. Parameters outside of
        the layers and the stem have 1.
        """
        stem = self.layer_decay.stem
        if stem and _is_inside(name, stem):
            return self.layer_decay.stem_factor
        layer = self._layer_index(name)
        if layer is None:
            return 1.0
        return decay ** (len(self.layer_decay.layers) - layer)

    def has_weight_decay(self, name: str) -> bool:
        """Return whether parameter ``name`` has weight decay.

        All have but the layer norms in layers, and what `LayerDecay.undecayed` names.
        """
        own_name = name.removeprefix("network.")
        if any(text in own_name for text in self.layer_decay.undecayed):
            return False
        module_name = name.rpartition(".")[0]
        is_layer_norm = isinstance(self.get_submodule(module_name), nn.LayerNorm)
        return not (is_layer_norm and self._layer_index(name) is not None)

    def _layer_index(self, name: str) -> int | None:
        for index, layer in enumerate(self.layer_decay.layers):
            if any(_is_inside(name, part) for part in layer):
                return index
        return None


def _is_inside(name: str, part: str) -> bool:
    """Return whether the backbone's parameter ``name`` belongs to a ``part`` of its network.

    The part is a submodule, or the parameter itself.
    """
    return name == f"network.{part}" or name.startswith(f"network.{part}.")


def pad_to_multiple(pixels: Tensor, size: int) -> Tensor:
    """Pad with zeros on the right and at the bottom, [B,C,H,W] -> [B,C,H',W'].

    Both sides become a multiple of ``size``.
    """
    height, width = pixels.shape[-2:]
    right = next_multiple(width, size) - width
    bottom = next_multiple(height, size) - height
    return F.pad(pixels, (0, right, 0, bottom))


def next_multiple(side: int, size: int) -> int:
    """Return the smallest multiple of ``size`` that is not smaller than ``side``.

    An export for images of any size computes with the formulas of sizes, and PyTorch simplifies
    this one, also if it is applied several times: (((s - 1) // 4 + 1) - 1) // 2 is (s - 1) // 8.
    With ``side + -side % size``, the formulas of a backbone with windows grew with every block, and
    their simplification did not end.
    """
    return size * ((side - 1) // size + 1)


def cut_map(x: Tensor, rows: int, columns: int, axis: int) -> Tensor:
    """Return the first ``rows`` and ``columns`` of a map. The axes are ``axis`` and the next one.

    A graph for images of any size would record whether a slice is contiguous, and would then refuse
    the images of which nothing is cut. So it selects the indices instead.
    """
    for dim, length in ((axis, rows), (axis + 1, columns)):
        if torch.compiler.is_exporting():
            x = x.index_select(dim, torch.arange(length, device=x.device))
        else:
            x = x.narrow(dim, 0, length)
    return x
