"""K groups with the memory of a few: the decoder and the loss run for chunks of groups.

The decoder's activations of a chunk are not kept. The backward pass computes them again, chunk by
chunk (gradient checkpointing). Only the decoder's outputs of all groups remain in memory. Results
and gradients are those of all groups at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from groupdetr.errors import UsageError
from groupdetr.huggingface.grouping import Grouping

# The arguments of a decoder that have an axis of queries, which is axis 1
QUERY_ARGUMENTS = (
    "inputs_embeds",
    "object_queries_position_embeddings",
    "query_position_embeddings",
    "reference_points",
)
# The axis of the queries in the outputs of decoders: after images, or after images and layers
QUERY_AXIS_OF_OUTPUTS = {
    "last_hidden_state": 1,
    "hidden_states": 1,  # of each layer
    "intermediate_hidden_states": 2,
    "intermediate_logits": 2,
    "intermediate_reference_points": 2,
    "intermediate_predicted_corners": 2,
    "initial_reference_points": 2,
    "reference_points": 2,
}


class ChunkedDecoder:
    """The forward function of a decoder, for ``groups_at_once`` groups at a time in training mode.

    ``axes`` are those of `QUERY_AXIS_OF_OUTPUTS` that differ in the family.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        grouping: Grouping,
        groups_at_once: int,
        axes: Mapping[str, int],
    ) -> None:
        self.forward, self.grouping, self.groups_at_once = forward, grouping, groups_at_once
        self.axes = {**QUERY_AXIS_OF_OUTPUTS, **axes}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the decoder with its own arguments, which are all named."""
        num_groups = self.grouping.num_groups
        self.grouping.queries_in_chunk = None
        if not self.grouping.active or not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        if args or kwargs.get("return_dict") is False:
            raise UsageError(
                "a decoder in chunks of groups takes named arguments and returns named outputs",
                remedy="leave out return_dict=False, or group_chunk",
            )
        queries_of_group = kwargs["inputs_embeds"].shape[1] // num_groups
        outputs = []
        for first in range(0, num_groups, self.groups_at_once):
            last = min(first + self.groups_at_once, num_groups)
            chunk = dict(kwargs)
            for name in QUERY_ARGUMENTS:
                if isinstance(kwargs.get(name), Tensor):
                    groups = kwargs[name].unflatten(1, (num_groups, -1))
                    chunk[name] = groups[:, first:last].flatten(1, 2)
            # The random numbers of dropout are the same when the chunk is computed again.
            outputs.append(checkpoint(self._run, queries_of_group, chunk, use_reentrant=False))
        return self._join(outputs)

    def _run(self, queries_of_group: int, arguments: dict[str, Any]) -> Any:
        """Run the decoder for a chunk of groups, which have so many queries each."""
        # It stays after this: layers with gradient checkpointing of their own are computed again
        # when the decoder of the same chunk has been computed again, and has returned.
        self.grouping.queries_in_chunk = queries_of_group
        return self.forward(**arguments)

    def _join(self, outputs: list[Any]) -> Any:
        """Concatenate the outputs of the chunks along the axis of the queries."""
        joined = outputs[0]
        for name, value in list(joined.items()):
            parts = [output[name] for output in outputs]
            if name in ("attentions", "cross_attentions"):
                raise UsageError(
                    "attention weights are not kept for chunks of groups",
                    remedy="leave out output_attentions=True, or group_chunk",
                )
            axis = self.axes[name]
            if isinstance(value, tuple):
                joined[name] = tuple(torch.cat(layer, axis) for layer in zip(*parts))
            else:
                joined[name] = torch.cat(parts, axis)
        return joined
