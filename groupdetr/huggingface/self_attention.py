"""Self-attention within each group (Eq. 5 of the paper), by hooks on a module of transformers.

In the decoders of transformers, only self-attention lets queries see each other. Cross-attention,
feed-forward networks, heads and box refinement treat every query alone. So the groups are
concatenated along the axis of the queries, [B,K*N,C], and only self-attention needs a change: while
it runs, the groups are in the batch axis, [B*K,N,C].
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from groupdetr.huggingface.grouping import Grouping


class AttendWithinGroups:
    """Two hooks that move the groups into the batch axis while a self-attention module runs.

    The module itself is not changed. Its attention mask [N,N] holds for every group.
    ``query_axis`` is 0 for a module whose queries are [N,B,C].
    """

    def __init__(self, grouping: Grouping, query_axis: int = 1) -> None:
        self.grouping = grouping
        self.query_axis = query_axis
        # The groups in the module, from the hook before it to the one after it
        self._num_groups = 1

    def attach(self, self_attention: nn.Module) -> None:
        """Let the module attend within the groups in training mode."""
        self.grouping.before(self_attention, self.groups_to_batch)
        self.grouping.after(self_attention, self.groups_to_queries)

    def groups_to_batch(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Turn every argument [B,K*N,C] into [B*K,N,C], or [K*N,B,C] into [N,K*B,C]."""
        if not self.grouping.active:
            return None
        hidden_states = args[0] if args else kwargs["hidden_states"]
        rows = hidden_states.shape[:2]
        self._num_groups = self.grouping.groups_in_decoder(rows[self.query_axis])

        def split(value: Any) -> Any:
            # Position embeddings have the same first two axes as the hidden states.
            if isinstance(value, Tensor) and value.dim() == 3 and value.shape[:2] == rows:
                return self._split(value)
            return value

        split_kwargs = {name: split(value) for name, value in kwargs.items()}
        return tuple(split(value) for value in args), split_kwargs

    def groups_to_queries(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Turn the attended queries [B*K,N,C] back into [B,K*N,C].

        Attention weights, the second output, remain [B*K,heads,N,N]: there are none between groups.
        """
        if not self.grouping.active:
            return output
        if isinstance(output, tuple):
            return self._join(output[0]), *output[1:]
        return self._join(output)

    def _split(self, x: Tensor) -> Tensor:
        groups = x.unflatten(self.query_axis, (self._num_groups, -1))
        if self.query_axis == 0:
            groups = groups.transpose(0, 1)  # [K,N,B,C] -> [N,K,B,C]
        return groups.flatten(1 - self.query_axis, 2 - self.query_axis)

    def _join(self, x: Tensor) -> Tensor:
        if self.query_axis == 0:
            groups = x.unflatten(1, (self._num_groups, -1))  # [N,K,B,C]
            return groups.transpose(0, 1).flatten(0, 1)
        return x.unflatten(0, (-1, self._num_groups)).flatten(1, 2)
