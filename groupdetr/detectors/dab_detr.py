"""DAB-DETR (Liu et al., ICLR 2022, arXiv 2201.12329): queries are boxes, which every decoder layer refines."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.term import Term
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.modeling.attention.conditional_cross_attention import ModulatedAim
from groupdetr.modeling.decoder import look_forward_twice
from groupdetr.modeling.mlp import MLP, FeedForward
from groupdetr.modeling.position_embedding import Given, OfBox, Scaled
from groupdetr.modeling.queries.learned_queries import LearnedAnchors


@dataclass(frozen=True)
class DABDETR(ConditionalDETR):
    """Numbers as in the official code."""

    num_detections: int = 300
    dropout: float = 0.0
    temperature: float = (
        20.0  # 10 for the published R50-DC5 checkpoint; queries have 10000 nevertheless
    )
    eps: float = 1e-3
    num_patterns: int = (
        0  # each of the num_queries anchors asks once, or with every pattern; 3 in published models
    )

    update = staticmethod(look_forward_twice)

    def token_place(self) -> nn.Module:
        return Scaled(Given(), MLP(self.channels, self.channels, self.channels, num_layers=2))

    def feed_forward(self) -> FeedForward:
        return FeedForward(self.channels, self.hidden, self.dropout, nn.PReLU())

    def queries(self) -> nn.Module:
        return LearnedAnchors(
            self.num_groups,
            self.num_queries,
            self.num_patterns,
            self.channels,
            self.inference_group,
        )

    def aims(self) -> list[nn.Module]:
        size = MLP(self.channels, self.channels, 2, num_layers=2)
        return [ModulatedAim(aim, size) for aim in self.point_aims()]

    def query_place(self) -> nn.Module:
        return OfBox(self.channels)

    def terms(self) -> list[Term]:
        return [Focal(2.0, 1.0), L1(5.0, 5.0), GIoU(2.0, 2.0, eps=1e-6)]
