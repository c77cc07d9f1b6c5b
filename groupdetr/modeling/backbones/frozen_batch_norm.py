"""Frozen batch norm, folded into the convolution before it.

A batch norm with fixed statistics multiplies and shifts every channel. Here it multiplies the
weights of the convolution instead of the feature map, so it needs no pass over the map, forward or
backward. Weights and statistics keep the names that they have in all checkpoints, and the
convolution's weights are trained as usual.

In evaluation mode the product of weights and scale is kept from one forward pass to the next. It is
computed again after every change of them, see `FoldedWeight`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from groupdetr.modeling.backbones.same_padding import Conv2dSame, pad_same
from groupdetr.modeling.convolution import computed_by_onednn, convolve
from groupdetr.modeling.linear import multiply, outer, uses_onednn


def _update_after_loading(norm: nn.Module, _: object) -> None:
    assert isinstance(norm, FrozenBatchNorm)
    norm.update_scale_and_shift()


class FrozenBatchNorm(nn.Module):
    """The scale and shift of every channel, which `NormedConv2d` applies.

    The forward pass takes the map [B,C,H,W] that is normalised already, and only applies the
    activation that the norms of some of timm's networks have.
    """

    # [C] each, as in checkpoints
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    # [C] each, computed from those
    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        # A norm of timm may have an activation. Those of PyTorch have none.
        self.act = getattr(norm, "act", nn.Identity())
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())
        self.register_load_state_dict_post_hook(_update_after_loading)
        self.update_scale_and_shift()

    def update_scale_and_shift(self) -> None:
        """Compute scale and shift from weight, bias and statistics.

        Loading a checkpoint calls this. Call it after every other change of these buffers.
        """
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", self.bias - self.running_mean * scale, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # After .double(), for example, the precision of the buffers allows a more exact result.
        self.update_scale_and_shift()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


@dataclass(frozen=True)
class FoldedWeight:
    """The product of a convolution's weight and a norm's scale, and what it was computed from.

    PyTorch counts the changes of a tensor in place: ``_version`` changes in a step of an optimizer,
    in ``load_state_dict``, and in every other assignment to its values but one to ``tensor.data``,
    which hides it from autograd, too. After such an assignment, ``model.eval()`` must be called
    again: to compare all values in every pass would take as long as to multiply them.
    """

    product: Tensor
    # The memory of the weight. It is referred to here, so that no later weight has its address.
    weight: Tensor
    scale: Tensor
    versions: tuple[int, int]  # of both

    @classmethod
    def compute(cls, weight: Tensor, scale: Tensor) -> FoldedWeight:
        # Tensors that are created in inference mode could not be used outside of it.
        with torch.inference_mode(False), torch.no_grad():
            product = multiply_channels(weight, scale)
            return cls(product, weight.detach(), scale, (weight._version, scale._version))

    def is_current(self, weight: Tensor, scale: Tensor) -> bool:
        """Return whether the product was computed from this weight and scale as they are now."""
        return (
            scale is self.scale
            and weight.data_ptr() == self.weight.data_ptr()
            and (weight._version, scale._version) == self.versions
        )


def multiply_channels(weight: Tensor, scale: Tensor) -> Tensor:
    """Weight [O,I,h,w] of a convolution times scale [O] of its output channels."""
    return weight * scale.view(-1, 1, 1, 1)


class _NormedConvolution(torch.autograd.Function):
    """A convolution by the product of weight and scale, which is not kept for the backward pass.

    The products of all layers would need as much memory as the weights of the backbone. A 1 x 1
    convolution is a linear layer on every pixel. oneDNN computes that faster than PyTorch computes
    convolutions of few images, for which it calls MKL.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, conv: nn.Conv2d
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.conv = conv
        ctx.is_linear = is_linear_on_pixels(x, weight, conv)
        product = multiply_channels(weight, scale)
        if ctx.is_linear:
            return convolve(x, product, shift, conv)
        return conv._conv_forward(x, product, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        product = multiply_channels(weight, scale)
        if ctx.is_linear:
            grad_x, grad_product = _linear_backward(ctx.needs_input_grad[0], grad, x, product)
            grad_weight = multiply_channels(grad_product, scale)
            return grad_x, grad_weight, None, None, None
        conv = ctx.conv
        grad_x, grad_product, _ = torch.ops.aten.convolution_backward(
            grad,
            x,
            product,
            None,  # no gradient of the shift
            conv.stride,
            conv.padding,
            conv.dilation,
            False,  # not transposed, so there is no padding of the output
            [0, 0],
            conv.groups,
            [*ctx.needs_input_grad[:2], False],
        )
        return grad_x, multiply_channels(grad_product, scale), None, None, None


def is_linear_on_pixels(x: Tensor, weight: Tensor, conv: nn.Conv2d) -> bool:
    """Return whether a convolution is a linear layer on every pixel that oneDNN computes."""
    return (
        weight.shape[2:] == (1, 1)
        and (conv.stride, conv.padding, conv.groups) == ((1, 1), (0, 0), 1)
        and uses_onednn(x, weight)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _linear_backward(
    x_needs_grad: bool, grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of a map [B,C,H,W] and of the weight [O,C,1,1] of a 1 x 1 convolution.

    ``grad`` [B,O,H,W] is that of the result. The gradient of the map is None if none is needed.
    """
    grad_pixels = grad.permute(0, 2, 3, 1).contiguous()  # [B,H,W,O]
    pixels = x.permute(0, 2, 3, 1)  # [B,H,W,C]
    grad_x = None
    if x_needs_grad:
        grad_x = multiply(grad_pixels, weight.flatten(1).t()).permute(0, 3, 1, 2)
    grad_weight = outer(grad_pixels.flatten(0, 2), pixels.flatten(0, 2))
    return grad_x, grad_weight.reshape(weight.shape)


class NormedConv2d(nn.Conv2d):
    """A convolution without bias that applies the frozen batch norm after it in the network."""

    norm: FrozenBatchNorm
    folded: FoldedWeight | None

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm) -> None:
        assert not isinstance(conv.padding, str)
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            _pair(conv.kernel_size),
            _pair(conv.stride),
            _pair(conv.padding),
            _pair(conv.dilation),
            conv.groups,
            bias=False,
            device="meta",  # the weight is that of `conv`, so none has to be allocated
        )
        self.weight = conv.weight
        # The norm is already a submodule of the network. Setting the attribute in the usual way
        # would make it a submodule of the convolution, too.
        object.__setattr__(self, "norm", norm)
        self.folded = None

    def forward(self, x: Tensor) -> Tensor:
        if computed_by_onednn(x, self.weight):
            return self.convolve(x)
        if self._multiplies_again(x):
            return _NormedConvolution.apply(
                self.pad(x), self.weight, self.norm.scale, self.norm.shift, self
            )
        return self._conv_forward(self.pad(x), self.folded_weight(), self.norm.shift)

    def convolve(self, x: Tensor, relu: bool = False, plus: Tensor | None = None) -> Tensor:
        """Return the normalised map, plus another one, and after a ReLU, if these are asked for.

        Only for what `computed_by_onednn` is True of.
        """
        weight = self.folded_weight()
        return convolve(self.pad(x), weight, self.norm.shift, self, relu, plus)

    def folded_weight(self) -> Tensor:
        """Return the weight times the scale of the norm.

        In evaluation mode, if no gradient of the weight is needed, it is computed only once.
        """
        weight, scale = self.weight, self.norm.scale
        if not self._keeps_product():
            self.folded = None
            return multiply_channels(weight, scale)
        folded = self.folded
        if folded is None or not folded.is_current(weight, scale):
            folded = self.folded = FoldedWeight.compute(weight, scale)
        return folded.product

    def _keeps_product(self) -> bool:
        """Return whether the product of weight and scale may be kept for the next forward pass."""
        needs_gradient = torch.is_grad_enabled() and self.weight.requires_grad
        # A graph must depend on the weight.
        is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        # Tensors of other types, such as those of exporters and of torch.func, have no memory of
        # their own, and changes of tensors of inference mode are not counted.
        has_versions = (
            type(self.weight) is nn.Parameter
            and not self.weight.is_inference()
            and not self.norm.scale.is_inference()
        )
        return has_versions and not (self.training or needs_gradient or is_recorded)

    def _multiplies_again(self, x: Tensor) -> bool:
        """Return whether the backward pass multiplies weight and scale again.

        Otherwise it keeps their product. Under autocast this is half as large. Compilers and
        exporters must see the usual operations.
        """
        return (
            torch.is_grad_enabled()
            and self.weight.requires_grad
            # Tensors of other types, such as those of torch.func, need operations of PyTorch's own.
            and type(self.weight) is nn.Parameter
            and not torch.is_autocast_enabled(x.device.type)
            and not torch.compiler.is_compiling()
            and not torch.compiler.is_exporting()
            and not torch.jit.is_tracing()
        )

    def train(self, mode: bool = True) -> Self:
        self.folded = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickled models compute the product from their own weights.
        return {**super().__getstate__(), "folded": None}

    def pad(self, x: Tensor) -> Tensor:
        """Return the map as the convolution takes it; its own padding is applied later."""
        return x


class NormedConv2dSame(NormedConv2d):
    """The same for a convolution that pads as TensorFlow does.

    The padding depends on the size of the map, so that the result has H/stride rows, rounded up.
    """

    def pad(self, x: Tensor) -> Tensor:
        is_usual = self.stride == (2, 2) and self.dilation == (1, 1)
        if torch.compiler.is_exporting() and is_usual and all(k % 2 for k in self.kernel_size):
            return _pad_any_size(x, self.kernel_size)
        return pad_same(x, self.kernel_size, self.stride, self.dilation)


def _pad_any_size(x: Tensor, kernel_size: tuple[int, ...]) -> Tensor:
    """Pad a map [B,C,H,W] for odd kernels of stride 2, in a graph for images of any size.

    The convolution has the same result as after `pad_same`, which pads odd sides by one pixel more
    on the left. Sizes that depend on that in every layer would take the exporter minutes. Here only
    the indices of the pixels depend on it, and there may be one column more, which is not used.
    """
    for axis, kernel in zip((2, 3), kernel_size):
        side = x.shape[axis]
        before, after = kernel // 2, kernel // 2 + 1
        padding = (before, after) if axis == 3 else (0, 0, before, after)
        first = torch.full((), 1 - side % 2, dtype=torch.int64, device=x.device)
        index = torch.arange(side + kernel - 1, device=x.device) + first
        x = F.pad(x, padding).index_select(axis, index)
    return x


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    height, width = values
    return height, width


def freeze_norms(network: nn.Module) -> nn.Module:
    """Replace every batch norm of a ResNet, in place, and return the network.

    Every batch norm must directly follow its convolution in the order of submodules.
    """
    fold_norms(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    return network


def fold_norms(
    network: nn.Module,
    conv_same: type[nn.Conv2d] = Conv2dSame,
    norm_with_activation: type[nn.BatchNorm2d] | None = None,
) -> None:
    """Replace every batch norm that directly follows its convolution, in place.

    The submodules of the ``network`` are in the order in which they are applied, as in a ResNet or
    an EfficientNet. Not replaced are norms after a convolution with a bias. ``conv_same`` and
    ``norm_with_activation`` are classes of the network: a convolution with "SAME" padding, and a
    batch norm with dropout ``drop`` and an activation ``act``, as timm has it.
    """
    normed_classes: dict[type[nn.Module], type[NormedConv2d]] = {
        nn.Conv2d: NormedConv2d,
        conv_same: NormedConv2dSame,
    }
    for block in list(network.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(block.named_children())):
            normed_class = normed_classes.get(type(conv))
            if normed_class is None or conv.bias is not None:
                continue
            # Dropout between the norm and its activation could not be kept.
            has_activation = type(norm) is norm_with_activation and _has_no_dropout(norm)
            if type(norm) is nn.BatchNorm2d or has_activation:
                frozen = FrozenBatchNorm(norm)
                block.register_module(norm_name, frozen)
                block.register_module(conv_name, normed_class(conv, frozen))


def _has_no_dropout(norm: nn.Module) -> bool:
    return isinstance(norm.drop, nn.Identity)
