"""The one decoder loop of all detectors: compete, look, think, say, and look again, better aimed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groupdetr.groups import Compete
from groupdetr.modeling.attention.multihead import View
from groupdetr.structures.memory import Memory
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries

# (head, content [B,K,N,C], reference, what was said of it) -> the reference that the next layer looks at, and the one
# that its head starts from
Update = Callable[[nn.Module, Tensor, Tensor, Predictions], tuple[Tensor, Tensor]]


def keep(
    head: nn.Module, content: Tensor, reference: Tensor, said: Predictions
) -> tuple[Tensor, Tensor]:
    """Conditional DETR: a query looks at the same point in all layers."""
    del head, content, said
    return reference, reference


def refine(
    head: nn.Module, content: Tensor, reference: Tensor, said: Predictions
) -> tuple[Tensor, Tensor]:
    """Deformable DETR: the box that was said is the next reference, and no gradient reaches back to it."""
    del head, content, reference
    box = said.boxes.detach()
    return box, box


def look_forward_twice(
    head: nn.Module, content: Tensor, reference: Tensor, said: Predictions
) -> tuple[Tensor, Tensor]:
    """DAB-DETR's code, and DINO, which named it: the box is the next reference, and the next layer's loss reaches back
    to it through what its head starts from, but not through where it looked.

    The box is that of the content before the norm, unlike the one that is predicted.
    """
    del said
    box = head.box(content, reference)  # type: ignore[operator]
    return box.detach(), box


def attend_mask(
    head: nn.Module, content: Tensor, reference: Tensor, said: Predictions
) -> tuple[Tensor, Tensor]:
    """Mask2Former (Cheng et al. 2022): the next layer looks inside the mask that was said, told by its embedding."""
    del head, content
    return said.masks.embedding.detach(), reference


class DecoderLayer(nn.Module):
    """[B,K,N,C] -> [B,K,N,C], each of three steps followed by a norm. ``compete`` says who attends to whom.

    A query aims by what it knew when the layer began, before it competed: so in the official code, where the decoder
    computes the transformation of p_s outside its layers.
    """

    def __init__(
        self,
        compete: Compete,
        self_attention: nn.Module,
        cross_attention: nn.Module,
        feed_forward: nn.Module,
        channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.compete = compete
        self.self_attention, self.cross_attention = self_attention, cross_attention
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
        view: View | None,
    ) -> Tensor:
        aim = self.cross_attention.aim(x, reference)  # type: ignore[operator]
        x = self.norm1(x + self.dropout(self.compete(self.self_attention, x, position, blocked)))
        x = self.norm2(x + self.dropout(self.cross_attention(x, position, aim, memory, view)))
        return self.norm3(x + self.dropout(self.feed_forward(x)))


class LookFirstLayer(DecoderLayer):
    """Mask2Former's order: queries look before they compete. The norms are numbered by what they follow, as above."""

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        blocked: Tensor | None,
        memory: Memory,
        view: View | None,
    ) -> Tensor:
        x = self.norm2(x + self.dropout(self.cross_attention(x, position, reference, memory, view)))
        x = self.norm1(x + self.dropout(self.compete(self.self_attention, x, position, blocked)))
        return self.norm3(x + self.dropout(self.feed_forward(x)))


def listen_first(say: Callable[[], Predictions]) -> list[Predictions]:
    """Nothing is said before the first layer."""
    del say
    return []


def speak_first(say: Callable[[], Predictions]) -> list[Predictions]:
    """Queries say what they expect before they have looked, as after every layer (Mask2Former)."""
    return [say()]


class Decoder(nn.Module):
    """Queries and memory to the predictions of every layer, L of [B,K,N,.].

    ``places`` and ``heads``: one for each layer, or one that all share. ``norm`` is applied to what a head reads, not
    to what the next layer gets. ``recompute`` trades a second forward of each layer for its activations (gradient
    checkpointing).
    """

    opening = staticmethod(listen_first)

    def __init__(
        self,
        layers: Sequence[nn.Module],
        places: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        norm: nn.Module,
        update: Update,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.layers, self.places, self.heads = (
            nn.ModuleList(layers),
            nn.ModuleList(places),
            nn.ModuleList(heads),
        )
        self.norm, self.update, self.recompute = norm, update, recompute

    def views(self, memory: Memory) -> list[View]:
        """What each layer sees of the images: the same for all queries, so some may look after others did."""
        return [layer.cross_attention.view(memory) for layer in self.layers]  # type: ignore

    def forward(
        self, queries: Queries, memory: Memory, views: Sequence[View | None] | None = None
    ) -> list[Predictions]:
        """``views``: those of `views`; without them every layer computes its own when its turn comes."""
        x, speaker = queries.content, self.heads[0]
        reference = start = queries.reference
        said = self.opening(lambda: speaker(self.norm(queries.content), queries.reference, memory))
        for layer, place, head, view in zip(
            self.layers, self.places, self.heads, views or repeat(None)
        ):
            if said:
                reference, start = self.update(speaker, x, reference, said[-1])
            position = place(queries.position, x, reference, memory)
            x = self.run(layer, x, position, reference, queries.blocked, memory, view)
            speaker = head
            said.append(speaker(self.norm(x), start, memory))
        return said

    def run(self, layer: nn.Module, *inputs: Tensor | Memory | View | None) -> Tensor:
        return (
            checkpoint(layer, *inputs, use_reentrant=False)
            if self.recompute and self.training
            else layer(*inputs)
        )


class SpeakingDecoder(Decoder):
    """One whose queries speak first: one prediction more than layers."""

    opening = staticmethod(speak_first)
