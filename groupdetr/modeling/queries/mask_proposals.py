"""Two-stage query selection whose proposals predict masks, too (RF-DETR-Seg)."""

from __future__ import annotations

from torch import Tensor

from groupdetr.modeling.box_and_mask_head import MaskEmbedding
from groupdetr.modeling.queries.proposals import ProposalsWithLearnedOffsets
from groupdetr.structures.memory import Memory, PixelMemory
from groupdetr.structures.predictions import Predictions


class MaskProposals(ProposalsWithLearnedOffsets):
    """LW-DETR's query selection, with a mask for every proposal.

    The mask embedding is that of the decoder's head, see `share_mask_embedding`. The proposals have
    mask features of their own: those in front of the first block of the encoder.
    """

    # The shared module. In a tuple it is not registered as a part of this module, so its parameters
    # have one name, that of the head, and are frozen, saved and counted there.
    _mask_embedding: tuple[MaskEmbedding, ...] = ()

    def share_mask_embedding(self, mask_embedding: MaskEmbedding) -> None:
        """Compute the mask embeddings by the module of the decoder's head."""
        self._mask_embedding = (mask_embedding,)

    def predictions(
        self, logits: Tensor, boxes: Tensor, content: Tensor, memory: Memory
    ) -> Predictions:
        assert isinstance(memory, PixelMemory)
        (mask_embedding,) = self._mask_embedding
        return Predictions(logits, boxes, memory.mask_features, mask_embedding(content))
