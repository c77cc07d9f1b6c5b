"""The detector as a network: backbone, encoder, query source and decoder in a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from torch import nn

from groupdetr.errors import UsageError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.decoder import Decoder
from groupdetr.modeling.encoders.encoder import Encoder
from groupdetr.modeling.frozen import eval_frozen_modules
from groupdetr.modeling.model_recipe import ModelRecipe
from groupdetr.modeling.parameter_axes import declared_axes
from groupdetr.modeling.queries.query_source import QuerySource
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import IMAGENET_MEAN, IMAGENET_STD, Images
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.targets import Target, require_targets
from groupdetr.structures.tensor_dataclass import require

# The parts of every detector. The decoder is that without its heads.
PARTS = ("backbone", "encoder", "decoder", "queries", "heads")
HEADS = "decoder.heads."  # how the names of the parameters of the prediction heads begin


class DetectionTransformer(nn.Module):
    """A DETR. ``recipe`` is the dataclass of hyperparameters that it was built from.

    Images go in, `Outputs` come out: the predictions of every decoder layer. `UsageError` if a
    module declares axes of its parameters that do not fit their shapes (`declared_axes`).
    """

    def __init__(
        self,
        backbone: Backbone,
        encoder: Encoder,
        queries: QuerySource,
        decoder: Decoder,
        recipe: ModelRecipe,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder
        self.recipe = recipe
        # Weights can only be loaded later if the declarations are right. Training must not begin
        # if they are not.
        declared_axes(self)

    def forward(
        self, images: Images | CameraImages, targets: Sequence[Target] | None = None
    ) -> Outputs:
        """``targets`` are given in training; only denoising queries use them.

        `ValueError` if ``images`` are not the dataclass that the detector takes, or if ``targets``
        are not one `Target` for each image.
        """
        self.require_inputs(images, targets)
        features = self.backbone(images.pixels, images.padding)
        memory = self.encoder(features, images)
        queries = self.queries(memory, targets)
        return Outputs(self.decoder(queries, memory), queries)

    def require_inputs(
        self, images: Images | CameraImages, targets: Sequence[Target] | None
    ) -> None:
        """Raise `ValueError` unless these are inputs of this detector. Nothing waits for a GPU."""
        expected = self.encoder.images_type
        creation = {
            Images: "create them by groupdetr.Images.from_list, from a list of tensors [3,H,W]",
            CameraImages: "create them by groupdetr.CameraImages.from_projections, "
            "from pixels [B,V,3,H,W]",
        }
        require(
            isinstance(images, expected),
            f"images must be groupdetr.{expected.__name__}, not {type(images).__name__}: "
            f"{creation[expected]}",
        )
        require(
            images.pixels.is_floating_point(),
            f"pixels {list(images.pixels.shape)} must be floating-point numbers, normalised by the "
            f"mean {IMAGENET_MEAN} and the standard deviation {IMAGENET_STD} of ImageNet, "
            f"not {images.pixels.dtype}",
        )
        if targets is not None:
            require_targets(targets, len(images))

    def freeze(self, parts: Iterable[str]) -> None:
        """Do not train these parts of `PARTS`; "decoder" is the decoder without its heads.

        Their parameters get no gradients, and their modules stay in evaluation mode: no dropout,
        and batch norms with fixed statistics. `UsageError` for a part that does not exist or has no
        parameters, or if nothing is left to train.
        """
        parts = tuple(parts)
        by_part = self.parameters_by_part()
        for part in parts:
            if not by_part.get(part):
                what = "has no parameters" if part in PARTS else "does not exist"
                having = [name for name, parameters in by_part.items() if parameters]
                raise UsageError(
                    f"the part {part!r} of this model {what}",
                    remedy=f"choose from the parts {', '.join(having)}",
                )
        if not any(
            parameter.requires_grad
            for part, parameters in by_part.items()
            for parameter in parameters.values()
            if part not in parts
        ):
            raise UsageError(
                f"everything is frozen: {', '.join(parts)}",
                remedy="leave one part or more that has parameters unfrozen",
            )
        for part in parts:
            for parameter in by_part[part].values():
                parameter.requires_grad_(False)
        self.train(self.training)

    def parameters_by_part(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return the parameters of each of `PARTS` by their names. A shared one has one name."""
        by_part: dict[str, dict[str, nn.Parameter]] = {part: {} for part in PARTS}
        for name, parameter in self.named_parameters():
            by_part.setdefault(part_of(name), {})[name] = parameter
        return by_part

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules but the frozen ones, which are always in evaluation mode."""
        super().train(mode)
        for part in (self.encoder, self.queries, self.decoder):
            eval_frozen_modules(part)
        return self

    def compile_parts(self, **options: object) -> None:
        """Compile backbone, encoder and decoder with torch.compile and its ``options``.

        Image sizes may change: the few graphs that this takes are compiled in the first steps. The
        query source is not compiled, because denoising depends on the number of objects.
        """
        for part in (self.backbone, self.encoder, self.decoder):
            part.compile(**options)


def part_of(name: str) -> str:
    """Return which of `PARTS` a parameter or buffer of a `DetectionTransformer` belongs to."""
    return "heads" if name.startswith(HEADS) else name.partition(".")[0]
