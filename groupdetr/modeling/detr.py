"""A detector, as a network: features, memory, queries, predictions, outputs, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.targets import Target


class DetectionTransformer(nn.Module):
    """Four parts in a row. ``recipe`` is what they were built from, a dataclass of hyperparameters."""

    def __init__(
        self,
        backbone: nn.Module,
        encoder: nn.Module,
        queries: nn.Module,
        decoder: nn.Module,
        recipe: Any,
    ) -> None:
        super().__init__()
        self.backbone, self.encoder, self.queries, self.decoder = (
            backbone,
            encoder,
            queries,
            decoder,
        )
        self.recipe = recipe

    def compile_parts(self, **options: Any) -> None:
        """Let torch.compile, with its ``options``, make fast what is the same for all images.

        Sizes may change: the few graphs that this takes are made in the first steps. Queries are left alone, as
        denoising depends on the objects.
        """
        for part in (self.backbone, self.encoder, self.decoder):
            part.compile(**options)

    def forward(
        self, images: Images | CameraImages, targets: Sequence[Target] | None = None
    ) -> Outputs:
        """Images and, in training, the objects in them (only denoising queries look at those) -> `Outputs`."""
        features = self.backbone(images.pixels)
        memory = self.encoder(features, *images.beside)
        queries = self.queries(memory, targets)
        return Outputs(self.decoder(queries, memory), queries)
