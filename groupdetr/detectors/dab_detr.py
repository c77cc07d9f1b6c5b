"""DAB-DETR: queries are anchor boxes, which every decoder layer refines.

(Liu et al., ICLR 2022, arXiv 2201.12329)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.term import Term
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.modeling.attention.conditional_cross_attention import BoxModulatedPointEmbedding
from groupdetr.modeling.decoder import BOX_REFERENCE_UPDATES, ReferenceUpdate
from groupdetr.modeling.mlp import MLP, FeedForward
from groupdetr.modeling.position_embedding import (
    BoxPositionEmbedding,
    ContentScaledPositionEmbedding,
    FixedPositionEmbedding,
    PositionEmbedding,
)
from groupdetr.modeling.queries.learned_queries import LearnedAnchors
from groupdetr.modeling.queries.query_source import QuerySource


@dataclass(frozen=True)
class DABDETR(ConditionalDETR):
    """DAB-DETR. Hyperparameters are those of the official code."""

    num_detections: int = 300
    dropout: float = 0.0
    # Of the image's position embedding: 10 for the published R50-DC5 checkpoint. The embedding of
    # the reference boxes has 10000 in any case.
    temperature: float = 20.0
    eps: float = 1e-3
    # If it is not 0, each of the num_queries anchors is used with every pattern. Published models
    # have 3.
    num_patterns: int = 0
    reference_update: str = "look_forward_twice"

    reference_updates: ClassVar[Mapping[str, ReferenceUpdate]] = BOX_REFERENCE_UPDATES

    @property
    def queries_of_a_group(self) -> int:
        return self.num_queries * max(1, self.num_patterns)

    def token_position_embedding(self) -> PositionEmbedding:
        scale = MLP(self.channels, self.channels, self.channels, num_layers=2)
        return ContentScaledPositionEmbedding(FixedPositionEmbedding(), scale)

    def feed_forward(self) -> FeedForward:
        return FeedForward(self.channels, self.dim_feedforward, self.dropout, nn.PReLU())

    def build_queries(self) -> QuerySource:
        return LearnedAnchors(
            self.num_groups,
            self.num_queries,
            self.num_patterns,
            self.channels,
            self.inference_group,
        )

    def query_sine_embeds(self) -> list[nn.Module]:
        size = MLP(self.channels, self.channels, 2, num_layers=2)
        embeddings: list[nn.Module] = []
        for point_embedding in self.reference_point_embeddings():
            embeddings.append(BoxModulatedPointEmbedding(point_embedding, size))
        return embeddings

    def query_position_embedding(self) -> PositionEmbedding:
        return BoxPositionEmbedding(self.channels)

    def terms(self) -> list[Term]:
        return [Focal(2.0, 1.0), L1(5.0, 5.0), GIoU(2.0, 2.0, eps=1e-6)]
