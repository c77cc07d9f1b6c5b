"""The interface of cross-attention: how object queries attend to the encoded image.

Each paper has its own cross-attention. The decoder layer only knows this interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from groupdetr.structures.memory import Memory

# What a cross-attention computes from the memory alone, such as projected keys and values. It does
# not depend on the queries, so it can be computed once and shared by all chunks of groups.
KeysValues = tuple[Tensor, ...]


class CrossAttention(nn.Module, ABC):
    """Queries [B,K,N,C] attend to a memory of S tokens and return [B,K,N,C].

    The memory has no group axis: the K * N queries of an image attend to the same tokens (Eq. 4),
    and keys and values are never repeated for the groups.
    """

    def embed_reference(self, content: Tensor, reference: Tensor) -> Tensor:
        """Return the reference in the form that `forward` takes. By default it is unchanged.

        ``content`` [B,K,N,C] is the content before self-attention, and ``reference`` [B|1,K,N,R]
        are the reference points or boxes.
        """
        return reference

    @abstractmethod
    def precompute_keys_values(self, memory: Memory) -> KeysValues:
        """Return everything that depends on the memory and not on the queries."""

    @abstractmethod
    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Memory,
        keys_values: KeysValues | None = None,
    ) -> Tensor:
        """Attend to ``memory``.

        ``content`` and ``position`` [B,K,N,C]; ``reference`` as `embed_reference` returned it;
        ``keys_values`` as `precompute_keys_values` returned it, or None to compute it here.
        """
