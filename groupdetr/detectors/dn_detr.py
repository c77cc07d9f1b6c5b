"""DN-DETR (Li et al., CVPR 2022, arXiv 2203.01305): DAB-DETR that also learns to put noised objects right."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.groups import denoise_in_all
from groupdetr.modeling.queries.denoising import (
    DenoisingQueries,
    LabelAndBoxNoise,
    MarkedLabelEmbedding,
    copies_that_fit,
)


@dataclass(frozen=True)
class DNDETR(DABDETR):
    """Noise as in the official code; the number of denoising queries as in Group DETR's experiments."""

    num_denoising: int = (
        100  # denoising queries of a group: as many copies of all objects as go into them
    )
    denoising_groups: int | None = (
        None  # copies, whatever their number of queries; 5 in DN-DETR's own experiments
    )
    label_noise_ratio: float = 0.2
    box_noise_scale: float = 0.4

    denoise = staticmethod(denoise_in_all)

    def queries(self) -> nn.Module:
        labels = MarkedLabelEmbedding(self.num_classes, self.channels)
        noise = LabelAndBoxNoise(self.num_classes, self.label_noise_ratio, self.box_noise_scale)
        return DenoisingQueries(
            super().queries(), labels, noise, self.copies, self.denoise, self.eps
        )

    def copies(self, objects: int) -> int:
        """How often each of the objects of a batch is noised, the most crowded image having ``objects``."""
        return self.denoising_groups or copies_that_fit(self.num_denoising, objects)
