"""Transformer decoder shared by all detectors.

Every layer runs self-attention, cross-attention and a feed-forward network. A prediction head
reads its output, and a reference update turns the prediction into the reference of the next layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat

from torch import Tensor, nn

from groupdetr.groups import GroupAttention
from groupdetr.modeling.attention.cross_attention import CrossAttention, KeysValues
from groupdetr.modeling.gradient_checkpointing import run_layer
from groupdetr.modeling.heads import BoxHead, PredictionHead
from groupdetr.modeling.mlp import FeedForward
from groupdetr.modeling.module_list import ModuleList
from groupdetr.modeling.position_embedding import PositionEmbedding
from groupdetr.structures.memory import Memory
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries

# (head, content [B,K,N,C], reference [B|1,K,N,R], predictions of this layer) ->
# (reference that the next layer attends to, reference that the next head predicts relative to)
ReferenceUpdate = Callable[[PredictionHead, Tensor, Tensor, Predictions], tuple[Tensor, Tensor]]


def keep_reference(
    head: PredictionHead, content: Tensor, reference: Tensor, predictions: Predictions
) -> tuple[Tensor, Tensor]:
    """Keep the same reference point in all layers (Conditional DETR)."""
    return reference, reference


def refine_boxes(
    head: PredictionHead, content: Tensor, reference: Tensor, predictions: Predictions
) -> tuple[Tensor, Tensor]:
    """Use the predicted box as the next reference, without its gradient (Deformable DETR)."""
    box = predictions.boxes.detach()
    return box, box


def look_forward_twice(
    head: PredictionHead, content: Tensor, reference: Tensor, predictions: Predictions
) -> tuple[Tensor, Tensor]:
    """Use the box as the next reference, with a gradient from the next layer's loss (DINO).

    The gradient flows through the box that the next head predicts relative to, but not through the
    reference that the next layer attends to. DINO gave it this name; DAB-DETR's code does the same.
    As in the official code of both, this box is computed from the content before the norm, unlike
    the predicted one.
    """
    assert isinstance(head, BoxHead)
    box = head.box(content, reference)
    return box.detach(), box


# How the boxes of a reference may be updated, by the names of the functions
BOX_REFERENCE_UPDATES: dict[str, ReferenceUpdate] = {
    "keep_reference": keep_reference,
    "refine_boxes": refine_boxes,
    "look_forward_twice": look_forward_twice,
}


def use_mask(
    head: PredictionHead, content: Tensor, reference: Tensor, predictions: Predictions
) -> tuple[Tensor, Tensor]:
    """Let the next layer attend inside the predicted mask, given by its embedding (Mask2Former).

    (Cheng et al. 2022)
    """
    return predictions.masks.embedding.detach(), reference


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward network, each followed by a norm.

    [B,K,N,C] -> [B,K,N,C]. ``group_attention`` decides whether queries of different groups attend
    to each other: `attend_within_groups` or `attend_across_groups`.
    """

    def __init__(
        self,
        group_attention: GroupAttention,
        self_attention: nn.Module,
        cross_attention: CrossAttention,
        feed_forward: FeedForward,
        channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.group_attention = group_attention
        self.self_attention = self_attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        blocked: Tensor | None,
        memory: Memory,
        keys_values: KeysValues | None,
    ) -> Tensor:
        """``x`` and ``position`` [B,K,N,C], ``reference`` [B|1,K,N,R], ``blocked`` [N,N] bool.

        ``keys_values`` are those of the cross-attention; None lets it compute them.
        """
        # The reference is embedded with the content *before* self-attention, because the official
        # code computes the query's sine embedding outside of the layer.
        reference = self.cross_attention.embed_reference(x, reference)
        x = self.norm1(x + self.dropout(self.attend_to_queries(x, position, blocked)))
        attended = self.cross_attention(x, position, reference, memory, keys_values)
        x = self.norm2(x + self.dropout(attended))
        return self.norm3(x + self.dropout(self.feed_forward(x)))

    def attend_to_queries(self, x: Tensor, position: Tensor, blocked: Tensor | None) -> Tensor:
        """Return the self-attention of the queries, within or across groups: [B,K,N,C]."""
        return self.group_attention(self.self_attention, x, position, blocked)


class CrossAttentionFirstLayer(DecoderLayer):
    """A layer in Mask2Former's order: cross-attention comes before self-attention.

    The norms are numbered by the operation that they follow, as in `DecoderLayer`.
    """

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        blocked: Tensor | None,
        memory: Memory,
        keys_values: KeysValues | None,
    ) -> Tensor:
        reference = self.cross_attention.embed_reference(x, reference)
        attended = self.cross_attention(x, position, reference, memory, keys_values)
        x = self.norm2(x + self.dropout(attended))
        x = self.norm1(x + self.dropout(self.attend_to_queries(x, position, blocked)))
        return self.norm3(x + self.dropout(self.feed_forward(x)))


class Decoder(nn.Module):
    """Queries and memory -> the predictions of every layer, a list of L with axes [B,K,N,.].

    ``position_embeddings`` and ``heads`` have one entry for each layer; layers may share a module.
    ``norm`` is applied to what a head reads, not to what the next layer receives.
    ``predict_before_first_layer`` adds the prediction of the queries as they come in, so that
    there is one prediction more than layers (Mask2Former). ``recompute`` runs the forward pass of
    each layer a second time instead of keeping its activations (gradient checkpointing).
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        position_embeddings: Sequence[PositionEmbedding],
        heads: Sequence[PredictionHead],
        norm: nn.Module,
        reference_update: ReferenceUpdate,
        recompute: bool,
        predict_before_first_layer: bool = False,
    ) -> None:
        super().__init__()
        self.layers: ModuleList[DecoderLayer] = ModuleList(layers)
        self.position_embeddings: ModuleList[PositionEmbedding] = ModuleList(position_embeddings)
        self.heads: ModuleList[PredictionHead] = ModuleList(heads)
        self.norm = norm
        self.reference_update = reference_update
        self.recompute = recompute
        self.predict_before_first_layer = predict_before_first_layer

    def precompute_keys_values(self, memory: Memory) -> list[KeysValues]:
        """Return what the cross-attention of every layer computes from the memory alone: [L]."""
        attentions = [layer.cross_attention for layer in self.layers]
        return [attention.precompute_keys_values(memory) for attention in attentions]

    def forward(
        self,
        queries: Queries,
        memory: Memory,
        keys_values: Sequence[KeysValues | None] | None = None,
    ) -> list[Predictions]:
        """``keys_values`` as `precompute_keys_values` returns it.

        Without it, every layer computes its own before it is run.
        """
        x = queries.content
        # A layer attends to `reference`; its head predicts relative to `head_reference`.
        reference = head_reference = queries.reference
        # The head of the last prediction: that of the previous layer, or the first one.
        previous_head = self.heads[0]
        predictions: list[Predictions] = []
        if self.predict_before_first_layer:
            predictions.append(previous_head(self.norm(x), reference, memory.of_layer(0)))

        position: Tensor | None = None
        previous_embedding: PositionEmbedding | None = None
        embedded_reference: Tensor | None = None
        recompute = self.recompute and self.training
        parts_of_layers = zip(
            self.layers, self.position_embeddings, self.heads, keys_values or repeat(None)
        )
        for index, parts in enumerate(parts_of_layers):
            layer, position_embedding, head, layer_keys_values = parts
            if predictions:
                reference, head_reference = self.reference_update(
                    previous_head, x, reference, predictions[-1]
                )
            # Layers with the same reference and a shared embedding have the same position embedding
            # (LW-DETR), which is then computed and kept once.
            is_unchanged = (
                position_embedding is previous_embedding and reference is embedded_reference
            )
            if position is None or position_embedding.uses_content or not is_unchanged:
                position = position_embedding(queries.position, x, reference, memory)
                previous_embedding, embedded_reference = position_embedding, reference
            x = run_layer(
                layer,
                x,
                position,
                reference,
                queries.blocked,
                memory,
                layer_keys_values,
                recompute=recompute,
            )
            predictions.append(head(self.norm(x), head_reference, memory.of_layer(index)))
            previous_head = head
        return predictions
