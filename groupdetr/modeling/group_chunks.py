"""Training K groups in chunks: the memory of a few groups, and the gradients of all.

Groups are independent given the encoded image. So the forward and backward pass of the decoder and
the criterion can run for one chunk of groups after the other, and the activations of a chunk are
freed before the next chunk begins. The gradients of the encoded image, the queries and the decoder
weights are summed over the chunks. They enter the autograd graph as a single node, as in fused
kernels of a linear layer and cross-entropy. There is one backward pass for the whole model, nothing
is computed twice, the keys and values are projected once, and hooks on parameters fire as usual.
Proposals have heads of their own in every group, so they are computed with the chunk of the group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.errors import UsageError
from groupdetr.groups import (
    GROUP_ATTENTIONS,
    GroupAttention,
    Match,
    attend_within_groups,
    match_groups,
)
from groupdetr.modeling.attention.cross_attention import KeysValues
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images
from groupdetr.structures.memory import Memory
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.queries import Queries
from groupdetr.structures.step_objects import StepObjects
from groupdetr.structures.targets import Target

# (sum of all losses, which has a gradient; every loss by its name, detached)
Losses = tuple[Tensor, dict[str, Tensor]]


class ModelWithLoss(nn.Module):
    """Images and targets -> losses, with all groups in one pass.

    DistributedDataParallel wraps this module or `ChunkedModelWithLoss`, because everything that
    needs a gradient is computed in their forward pass.
    """

    def __init__(self, model: DetectionTransformer, criterion: SetCriterion) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(
        self,
        images: Images | CameraImages,
        targets: Sequence[Target],
        step: StepObjects | None = None,
    ) -> Losses:
        """``step`` as in `SetCriterion.forward`."""
        return sum_losses(self.criterion(self.outputs(images, targets), targets, step))

    def outputs(self, images: Any, targets: Sequence[Target]) -> Outputs:
        """Return the output of the model."""
        outputs: Outputs = self.model(images, targets)
        return outputs

    def predict(self, images: Any) -> Outputs:
        """Return the output of the model in evaluation mode. Its parameters may be sharded."""
        outputs: Outputs = self.model(images)
        return outputs


class ChunkedModelWithLoss(nn.Module):
    """The losses and gradients of `ModelWithLoss`, for ``groups_at_once`` groups at a time.

    It is for training only, because its forward pass already computes gradients. The backward pass
    multiplies them by the gradient of the sum and passes them on. Only the random numbers of
    dropout differ from those of `ModelWithLoss`. `UsageError` if groups are not independent, and in
    a second backward pass of the same loss.
    """

    def __init__(
        self, model: DetectionTransformer, criterion: SetCriterion, groups_at_once: int
    ) -> None:
        super().__init__()
        group_attention = GROUP_ATTENTIONS[model.recipe.group_attention]
        require_independent_groups(group_attention, criterion.matcher.match)
        self.model = model
        self.criterion = criterion
        self.groups_at_once = groups_at_once

    def forward(
        self,
        images: Images | CameraImages,
        targets: Sequence[Target],
        step: StepObjects | None = None,
    ) -> Losses:
        """``step`` as in `SetCriterion.forward`."""
        memory = self.memory(images, targets)
        queries: Queries | None = None
        if not self.queries_by_chunk:
            queries = self.model.queries(memory, targets)
        keys_values = self.model.decoder.precompute_keys_values(memory)

        # The backward pass of a chunk ends at these leaves, where the gradients of all chunks add
        # up.
        boundary = GradientBoundary()
        weights = {}
        for name, weight in self.model.decoder.named_parameters():
            weights[name] = boundary.detach(weight)
        memory_leaves = memory.map(boundary.detach)
        keys_values_leaves: list[KeysValues] = []
        for layer_keys_values in keys_values:
            keys_values_leaves.append(tuple(boundary.detach(x) for x in layer_keys_values))

        if queries is None:
            chunks = self.query_chunks(memory_leaves, weights, targets, boundary)
        else:
            chunks = iter(split_groups(queries.map(boundary.detach), self.groups_at_once))
        losses_by_chunk = []
        for chunk in chunks:
            losses = self.chunk_loss(
                chunk, memory_leaves, keys_values_leaves, weights, targets, step
            )
            losses_by_chunk.append(losses)

        total_losses = {}
        for name in losses_by_chunk[0]:
            total_losses[name] = torch.stack([losses[name] for losses in losses_by_chunk]).sum()
        loss, loss_by_name = sum_losses(total_losses)
        return boundary.rejoin(loss), loss_by_name

    def predict(self, images: Any) -> Outputs:
        """Return the output of the model in evaluation mode. Its parameters may be sharded."""
        outputs: Outputs = self.model(images)
        return outputs

    def memory(self, images: Any, targets: Sequence[Target]) -> Memory:
        """Return the encoded images."""
        self.model.require_inputs(images, targets)
        features = self.model.backbone(images.pixels, images.padding)
        memory: Memory = self.model.encoder(features, images)
        return memory

    @property
    def queries_by_chunk(self) -> bool:
        """True if the queries of every chunk are computed with the chunk.

        Their activations are then freed with those of the decoder. Otherwise the queries of all
        groups are computed at once.
        """
        groups = self.model.queries.independent_groups()
        return groups is not None and len(groups) > self.groups_at_once

    def query_chunks(
        self,
        memory: Memory,
        weights: Mapping[str, Tensor],
        targets: Sequence[Target],
        boundary: GradientBoundary,
    ) -> Iterator[Queries]:
        """Compute and yield the queries of one chunk after the other.

        ``weights`` are the leaves of the decoder's parameters, by name. The gradients of the query
        source's own parameters are accumulated in leaves of ``boundary``, too.
        """
        source = self.model.queries
        groups = source.independent_groups()
        assert groups is not None
        leaves = {f"decoder.{name}": leaf for name, leaf in weights.items()}
        for name, weight in source.named_parameters():
            leaves[f"queries.{name}"] = boundary.detach(weight)
        both = _QueriesBesideDecoder(source, self.model.decoder)
        with source.same_random_numbers(memory, targets):
            for first in range(0, len(groups), self.groups_at_once):
                with source.run_groups(groups[first : first + self.groups_at_once]):
                    chunk: Queries = functional_call(
                        both, leaves, (memory, targets), tie_weights=False
                    )
                yield replace(chunk, total_groups=len(groups))

    def chunk_loss(
        self,
        chunk: Queries,
        memory: Memory,
        keys_values: Sequence[KeysValues],
        weights: Mapping[str, Tensor],
        targets: Sequence[Target],
        step: StepObjects | None,
    ) -> dict[str, Tensor]:
        """Return the losses of a chunk by name, and accumulate its gradients in the leaves.

        ``weights`` are the leaves of the decoder's parameters, by name.
        """
        # With tie_weights=True, torch would replace a shared module's weights once for each of its
        # names, but restore only the last of them.
        predictions = functional_call(
            self.model.decoder, dict(weights), (chunk, memory, keys_values), tie_weights=False
        )
        outputs = Outputs(predictions, chunk)
        loss, loss_by_name = sum_losses(self.criterion(outputs, targets, step))
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward()
        return loss_by_name


class _QueriesBesideDecoder(nn.Module):
    """The query source, and the decoder, one of whose modules the source may share.

    With `functional_call`, the leaves of both stand for their weights.
    """

    def __init__(self, queries: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.queries = queries
        self.decoder = decoder

    def forward(self, memory: Memory, targets: Sequence[Target]) -> Queries:
        queries: Queries = self.queries(memory, targets)
        return queries


def with_loss(
    model: DetectionTransformer,
    criterion: SetCriterion,
    groups_at_once: int | None,
    at_once: type[ModelWithLoss] = ModelWithLoss,
    in_chunks: type[ChunkedModelWithLoss] = ChunkedModelWithLoss,
) -> ModelWithLoss | ChunkedModelWithLoss:
    """Return model and criterion as one module, for all groups at once or for chunks of groups.

    ``at_once`` and ``in_chunks`` are the classes of these modules.
    """
    if groups_at_once is not None and model.recipe.needs_chunks(groups_at_once):
        return in_chunks(model, criterion, groups_at_once)
    return at_once(model, criterion)


def sum_losses(losses: Mapping[str, Tensor]) -> Losses:
    """Return the sum of the losses, and every loss by its name without its gradient."""
    total = torch.stack([*losses.values()]).sum()
    return total, {name: loss.detach() for name, loss in losses.items()}


def split_groups(queries: Queries, size: int) -> list[Queries]:
    """Split queries into chunks of ``size`` groups. The last chunk may have fewer."""
    num_groups = queries.content.shape[1]
    return [queries.slice_groups(first, first + size) for first in range(0, num_groups, size)]


class GradientBoundary:
    """A cut through the autograd graph.

    Each tensor at the cut is represented by a detached leaf. Gradients that were computed for the
    leaves are passed on to the tensors by `rejoin`.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.leaves: list[Tensor] = []

    def detach(self, x: Tensor) -> Tensor:
        """Return a leaf that stands for ``x``, or ``x`` itself if it needs no gradient."""
        if not x.requires_grad:
            return x
        leaf = x.detach().requires_grad_()
        self.tensors.append(x)
        self.leaves.append(leaf)
        return leaf

    def rejoin(self, value: Tensor) -> Tensor:
        """Return the scalar ``value``, connected to the graph of the tensors.

        The gradients of the leaves are those of ``value``. The backward pass of the result passes
        the gradient of each leaf on to the tensor that it stands for.
        """
        gradients = []
        for leaf in self.leaves:
            gradients.append(leaf.grad)
            # From now on only the graph holds the gradient, so that it frees or reuses the memory.
            leaf.grad = None
        return _PrecomputedGradients.apply(value, gradients, *self.tensors)


class _PrecomputedGradients(torch.autograd.Function):
    """A scalar function of tensors whose gradients are already known."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *tensors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.has_run_backward = False
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # By the chain rule, the gradient of the scalar multiplies every known gradient. It does so
        # in place: the activations of backbone and encoder are still needed, so a copy of all
        # gradients would raise the peak of the memory. Afterwards they are lost.
        if ctx.has_run_backward:
            raise UsageError(
                "a loss that is computed in chunks of groups has one backward pass, and this is "
                "the second one",
                remedy="compute the loss again before another backward pass, or compute all groups "
                "at once",
            )
        # `once_differentiable` of torch does not refuse it: the gradient of a loss has no graph.
        if torch.is_grad_enabled():
            raise UsageError(
                "a loss that is computed in chunks of groups has no second derivative, and this "
                "backward pass has create_graph=True",
                remedy="leave out create_graph=True, or compute all groups at once",
            )
        ctx.has_run_backward = True
        gradients = ctx.saved_tensors
        for known in gradients:
            if known is not None:
                known.mul_(grad)
        return None, None, *gradients


def groups_are_independent(group_attention: GroupAttention, match: Match) -> bool:
    """Return whether every group attends and is matched within itself.

    This is not so in rows b and c of Table 7.
    """
    return group_attention is attend_within_groups and match is match_groups


def require_independent_groups(group_attention: GroupAttention, match: Match) -> None:
    """Raise `UsageError` if groups attend to each other or are matched together."""
    if not groups_are_independent(group_attention, match):
        raise UsageError(
            "groups that attend to each other or are matched together cannot be computed in chunks",
            remedy="leave out --group-chunk; "
            "--accumulate and --recompute save memory for any model",
        )
