"""Chunked groups: K groups at the memory of a few, and how a detector and its criterion become one network.

Groups are independent given the memory X. So the gradients of a chunk of groups, by X, by its queries and by the
decoder's weights, can be taken at once, and its activations dropped before the next chunk begins. The sums enter the
graph as a single node, the way of fused linear and cross-entropy kernels: there is one backward pass for the whole
model, nothing is computed twice, the keys and values of X are projected once, and hooks on parameters fire as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.errors import UsageError
from groupdetr.groups import Compete, Match, match_groups, separately
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images
from groupdetr.structures.memory import Memory
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Target

Losses = tuple[
    Tensor, dict[str, Tensor]
]  # their sum, which has a gradient, and each by its name, which has none


class AtOnce(nn.Module):
    """Images and targets to losses, all groups together.

    This or `ByChunks` is what DistributedDataParallel wraps: all that needs a gradient is in their forward pass.
    """

    def __init__(self, model: DetectionTransformer, criterion: SetCriterion) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(
        self,
        images: Images | CameraImages,
        targets: Sequence[Target],
        mean_objects: Tensor | None = None,
    ) -> Losses:
        """``mean_objects`` as the criterion has it."""
        return summed(self.criterion(self.model(images, targets), targets, mean_objects))


class ByChunks(nn.Module):
    """The same losses and gradients, while decoder and criterion see ``groups_at_once`` groups at a time.

    For training alone, as gradients are taken in the forward pass: backward multiplies them by the gradient of the
    sum, and hands them on. Only what dropout draws is not that of `AtOnce`.
    """

    def __init__(
        self, model: DetectionTransformer, criterion: SetCriterion, groups_at_once: int
    ) -> None:
        super().__init__()
        expect_independent_groups(model.recipe.compete, criterion.match)
        self.model, self.criterion, self.groups_at_once = model, criterion, groups_at_once

    def forward(
        self,
        images: Images | CameraImages,
        targets: Sequence[Target],
        mean_objects: Tensor | None = None,
    ) -> Losses:
        def taught(chunk: Queries) -> dict[str, Tensor]:
            # tie_weights puts leaves in shared modules once for each name, and back only the last of them
            said = functional_call(
                self.model.decoder, weights, (chunk, seen, views), tie_weights=False
            )
            outputs = Outputs(said, chunk)
            loss, parts = summed(self.criterion(outputs, targets, mean_objects))
            with torch.autocast(loss.device.type, enabled=False):
                loss.backward()  # as far as the cut
            return parts

        memory: Memory = self.model.encoder(self.model.backbone(images.pixels), *images.beside)
        queries: Queries = self.model.queries(memory, targets)
        views = self.model.decoder.views(memory)  # type: ignore[operator]
        cut = Cut()
        weights = {name: cut(weight) for name, weight in self.model.decoder.named_parameters()}
        seen, asked = memory.mapped(cut), queries.mapped(cut)
        views = [tuple(map(cut, view)) for view in views]
        parts = [taught(chunk) for chunk in chunks(asked, self.groups_at_once)]
        loss, named = summed(
            {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
        )
        return cut.mended(loss), named


def learner(
    model: DetectionTransformer, criterion: SetCriterion, groups_at_once: int | None
) -> AtOnce | ByChunks:
    """The two as one network, with all groups at once or in chunks."""
    if groups_at_once is not None and model.recipe.in_chunks(groups_at_once):
        return ByChunks(model, criterion, groups_at_once)
    return AtOnce(model, criterion)


def summed(losses: dict[str, Tensor]) -> Losses:
    return torch.stack([*losses.values()]).sum(), {
        name: loss.detach() for name, loss in losses.items()
    }


def chunks(queries: Queries, size: int) -> list[Queries]:
    """Of ``size`` groups each; the last may have fewer."""
    return [
        queries.of_groups(first, first + size) for first in range(0, queries.content.shape[1], size)
    ]


class Cut:
    """Where a graph is cut: leaves that stand for its tensors, until their gradients are known."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.leaves: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return x
        self.tensors.append(x)
        self.leaves.append(x.detach().requires_grad_())
        return self.leaves[-1]

    def mended(self, value: Tensor) -> Tensor:
        """The scalar whose gradients the leaves have, with them as gradients of the tensors."""
        return _Known.apply(value, [leaf.grad for leaf in self.leaves], *self.tensors)


class _Known(torch.autograd.Function):
    """A scalar of tensors whose gradients were taken before."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *tensors: Tensor
    ) -> Tensor:
        del tensors
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if known is None else grad * known for known in ctx.saved_tensors)


def independent(compete: Compete, match: Match) -> bool:
    """Groups that attend to each other, or are matched together, cannot be told apart (Table 7 b and c)."""
    return compete is separately and match is match_groups


def expect_independent_groups(compete: Compete, match: Match) -> None:
    """Refuse those that are not."""
    if not independent(compete, match):
        raise UsageError(
            "groups that attend to each other or are matched together cannot be computed in chunks",
            remedy="leave --group-chunk out; --accumulate and --recompute save memory with any model",
        )
