"""DN-DETR: DAB-DETR that also learns to denoise boxes and labels of objects.

(Li et al., CVPR 2022, arXiv 2203.01305)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.groups import DENOISINGS
from groupdetr.modeling.queries.denoising import (
    DenoisingQueries,
    IndicatorLabelEmbedding,
    LabelAndBoxNoise,
    num_copies,
)
from groupdetr.modeling.queries.query_source import QuerySource


@dataclass(frozen=True)
class DNDETR(DABDETR):
    """DN-DETR. The noise is that of the official code.

    The number of denoising queries is that of Group DETR's experiments.
    """

    # Denoising queries of a group: there are as many copies of all objects as fit into them.
    num_denoising: int = 100
    # If it is given, the number of copies, whatever the number of queries is. It is 5 in DN-DETR's
    # own experiments.
    denoising_groups: int | None = None
    label_noise_ratio: float = 0.2  # probability that a label is replaced by a random one
    box_noise_scale: float = 0.4  # ``box_scale`` of `LabelAndBoxNoise`
    # The function of `groupdetr.groups` that says which groups have denoising losses
    denoise: str = "denoise_all_groups"

    def choices(self) -> dict[str, Mapping[str, Callable[..., Any]]]:
        return {**super().choices(), "denoise": DENOISINGS}

    def build_queries(self) -> QuerySource:
        labels = IndicatorLabelEmbedding(self.num_classes, self.channels)
        noise = LabelAndBoxNoise(self.num_classes, self.label_noise_ratio, self.box_noise_scale)
        matching = super().build_queries()
        return DenoisingQueries(
            matching, labels, noise, self.copies, DENOISINGS[self.denoise], self.eps
        )

    def copies(self, objects: int) -> int:
        return self.denoising_groups or num_copies(self.num_denoising, objects)
