"""RF-DETR-Seg: RF-DETR that predicts a mask for every box.

(Robinson et al. 2025, arXiv 2511.09554) Every decoder layer has mask features of its own. A query
predicts a mask by its dot product with them, as in Mask2Former.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from groupdetr.criterion.boxes_and_masks import BoxesAndPointSampledMasks
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.masks import Dice, PointCrossEntropy
from groupdetr.criterion.term import Term
from groupdetr.detectors.rf_detr import RFDETR
from groupdetr.groups import MATCHES
from groupdetr.modeling.box_and_mask_head import BoxAndMaskHead
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.encoders.mask_feature_encoder import MaskFeatureEncoder
from groupdetr.modeling.encoders.projector import Projector
from groupdetr.modeling.queries.mask_proposals import MaskProposals


@dataclass(frozen=True)
class RFDETRSeg(RFDETR):
    """RF-DETR-Seg-nano. Hyperparameters are those of version 1.11 of Roboflow's package.

    Nano has no windows: all of its blocks attend to the whole image.
    """

    proposals: ClassVar[type[MaskProposals]] = MaskProposals

    num_queries: int = 100
    num_detections: int = 100
    decoder_layers: int = 4
    strides: tuple[int, ...] = (12,)
    num_windows: int = 1
    position_grid: int = 26
    pixels_per_point: int = 16  # of the mask features, for one point where masks are compared

    @property
    def pair_builder(self) -> BoxesAndPointSampledMasks:
        """What compares predicted and annotated boxes and masks."""
        return BoxesAndPointSampledMasks(self.pixels_per_point)

    def build_encoder(self, in_channels: list[int]) -> MaskFeatureEncoder:
        projector = super().build_encoder(in_channels)
        assert isinstance(projector, Projector)
        return MaskFeatureEncoder(
            projector,
            self.channels,
            self.decoder_layers,
            self.pair_builder,
            self.recompute,
        )

    def head(self) -> BoxAndMaskHead:
        return BoxAndMaskHead(self.channels, self.num_classes)

    def build(self) -> DetectionTransformer:
        model = super().build()
        # Proposals and decoder layers share the mask embedding.
        head = model.decoder.heads[0]
        assert isinstance(head, BoxAndMaskHead)
        assert isinstance(model.queries, MaskProposals)
        model.queries.share_mask_embedding(head.mask_embed)
        return model

    def terms(self) -> list[Term]:
        return [*super().terms(), PointCrossEntropy(5.0, 5.0), Dice(5.0, 5.0)]

    def criterion(self) -> SetCriterion:
        return SetCriterion(self.terms(), MATCHES[self.match], self.pair_builder)


RF_DETR_SEG_NANO = RFDETRSeg()
RF_DETR_SEG_SMALL = RFDETRSeg(num_windows=2, position_grid=32)
RF_DETR_SEG_MEDIUM = replace(
    RF_DETR_SEG_SMALL,
    decoder_layers=5,
    num_queries=200,
    num_detections=200,
    position_grid=36,
)
RF_DETR_SEG_LARGE = replace(RF_DETR_SEG_MEDIUM, position_grid=42)
RF_DETR_SEG_XLARGE = replace(
    RF_DETR_SEG_MEDIUM,
    decoder_layers=6,
    num_queries=300,
    num_detections=300,
    position_grid=52,
)
RF_DETR_SEG_2XLARGE = replace(RF_DETR_SEG_XLARGE, position_grid=64)
# The first one that Roboflow published, as large as medium but for its decoder
RF_DETR_SEG_PREVIEW = replace(RF_DETR_SEG_MEDIUM, decoder_layers=4)
