"""DAB-Deformable-DETR: queries are anchor boxes, which attend to a few points of several levels.

(Liu et al., ICLR 2022, arXiv 2201.12329; Zhu et al., ICLR 2021, arXiv 2010.04159)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.term import Term
from groupdetr.detectors.recipe import Recipe, init_xavier, init_xavier_by_group
from groupdetr.groups import GROUP_ATTENTIONS
from groupdetr.modeling.attention.deformable_attention import (
    DeformableAttention,
    DeformableCrossAttention,
)
from groupdetr.modeling.attention.self_attention import SelfAttention
from groupdetr.modeling.decoder import BOX_REFERENCE_UPDATES, Decoder, DecoderLayer
from groupdetr.modeling.encoders.deformable_encoder import DeformableEncoder, DeformableEncoderLayer
from groupdetr.modeling.encoders.feature_projection import MultiScaleProjection
from groupdetr.modeling.heads import BoxHead
from groupdetr.modeling.mlp import MLP, FeedForward
from groupdetr.modeling.position_embedding import (
    ContentScaledPositionEmbedding,
    PaddedBoxPositionEmbedding,
    PositionEmbedding,
)
from groupdetr.modeling.queries.learned_queries import LearnedAnchorsAndContents
from groupdetr.modeling.queries.proposals import Proposals
from groupdetr.modeling.queries.query_source import QuerySource

# Initial bias of the first head for width and height, before the sigmoid: boxes start smaller than
# their anchors.
INITIAL_SIZE_BIAS = -2.0


@dataclass(frozen=True)
class DABDeformableDETR(Recipe):
    """DAB-Deformable-DETR with one stage, as its published weights have it.

    Hyperparameters are those of the official code.
    """

    num_detections: int = 100
    strides: tuple[int, ...] = (8, 16, 32)
    dropout: float = 0.0
    encoder_layers: int = 6
    dim_feedforward: int = 2048  # width of the feed-forward networks
    num_levels: int = 4
    num_points: int = 4  # sampling points of an attention head on every level
    temperature: float = 10000.0  # of the image's position embedding
    offset: float = -0.5  # shift of the image's position embedding, in pixels of the feature map
    eps: float = 1e-3  # of the inverse sigmoid
    # The function of `groupdetr.modeling.decoder` that turns predictions into the next reference
    reference_update: str = "refine_boxes"

    def choices(self) -> dict[str, Mapping[str, Callable[..., Any]]]:
        return {**super().choices(), "reference_update": BOX_REFERENCE_UPDATES}

    @property
    def num_maps(self) -> tuple[int, int]:
        # The projection computes the levels that have no map.
        return 1, self.num_levels

    def build_encoder(self, in_channels: list[int]) -> DeformableEncoder:
        layers = [self.encoder_layer() for _ in range(self.encoder_layers)]
        init_xavier_mlps(layers)
        return DeformableEncoder(
            self.feature_projection(in_channels),
            layers,
            self.num_levels,
            self.temperature,
            self.offset,
            self.recompute,
        )

    def feature_projection(self, in_channels: list[int]) -> nn.Module:
        """Return the projection of the backbone's maps to the width of the transformer."""
        return MultiScaleProjection(in_channels, self.channels, self.num_levels)

    def encoder_layer(self) -> DeformableEncoderLayer:
        attention = DeformableAttention(
            self.channels, self.num_heads, self.num_levels, self.num_points
        )
        return DeformableEncoderLayer(attention, self.feed_forward(), self.channels, self.dropout)

    def feed_forward(self) -> FeedForward:
        return FeedForward(self.channels, self.dim_feedforward, self.dropout)

    def build_queries(self) -> QuerySource:
        return LearnedAnchorsAndContents(
            self.num_groups, self.num_queries, self.channels, self.inference_group
        )

    def build_decoder(self) -> Decoder:
        layers = [self.decoder_layer() for _ in range(self.decoder_layers)]
        position_embeddings = self.query_position_embeddings()
        init_xavier_mlps([*layers, *position_embeddings])
        return Decoder(
            layers,
            position_embeddings,
            self.heads(),
            self.norm(),
            BOX_REFERENCE_UPDATES[self.reference_update],
            self.recompute,
        )

    def decoder_layer(self) -> DecoderLayer:
        self_attention = SelfAttention(self.channels, self.num_heads, self.dropout)
        cross_attention = DeformableCrossAttention(
            self.channels, self.num_heads, self.num_levels, self.num_points
        )
        return DecoderLayer(
            GROUP_ATTENTIONS[self.group_attention],
            self_attention,
            cross_attention,
            self.feed_forward(),
            self.channels,
            self.dropout,
        )

    def query_position_embeddings(self) -> list[PositionEmbedding]:
        """Return the position embedding of the queries for every decoder layer.

        From the second layer on, it is scaled by an MLP of the content, which layers share.
        """
        position_embedding = self.query_position_embedding()
        scale = MLP(self.channels, self.channels, self.channels, num_layers=2)
        scaled = ContentScaledPositionEmbedding(position_embedding, scale)
        return [position_embedding, *[scaled] * (self.decoder_layers - 1)]

    def query_position_embedding(self) -> PositionEmbedding:
        """Return the position embedding of the first decoder layer."""
        return PaddedBoxPositionEmbedding(self.channels)

    def heads(self) -> Sequence[BoxHead]:
        """Return one head for every decoder layer. The first one starts with small boxes."""
        heads = [self.head() for _ in range(self.decoder_layers)]
        size_bias = heads[0].regress.layers[-1].bias[2:]
        nn.init.constant_(size_bias, INITIAL_SIZE_BIAS)
        return heads

    def head(self) -> BoxHead:
        return BoxHead(self.channels, self.num_classes, self.eps)

    def norm(self) -> nn.Module:
        """Return the norm that is applied to the content before a head reads it."""
        return nn.Identity()

    def terms(self) -> list[Term]:
        return [Focal(2.0, 1.0), L1(5.0, 5.0), GIoU(2.0, 2.0, eps=1e-6)]


@dataclass(frozen=True)
class TwoStageDABDeformableDETR(DABDeformableDETR):
    """DAB-Deformable-DETR with queries from the encoder, as in detrex.

    The second stage of the official code was never run.
    """

    def build_queries(self) -> QuerySource:
        proposals = Proposals(
            self.num_groups, self.num_queries, self.channels, self.num_classes, self.inference_group
        )
        init_xavier_by_group(proposals.heads.project.weight)
        return proposals

    def heads(self) -> Sequence[BoxHead]:
        """Return one head for every decoder layer.

        None starts with small boxes, because the boxes of proposals have a size already.
        """
        return [self.head() for _ in range(self.decoder_layers)]


def init_xavier_mlps(modules: Iterable[nn.Module]) -> None:
    """Initialise the matrices of all MLPs and feed-forward networks by Xavier's rule.

    The attentions keep their own initialisation. Self-attention applies Xavier's rule to query, key
    and value projections as one stacked matrix, and the sampling points of deformable attention
    start on rays around the reference.
    """
    for module in modules:
        for part in module.modules():
            if isinstance(part, MLP | FeedForward):
                init_xavier([part])
