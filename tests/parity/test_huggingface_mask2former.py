"""All predictions equal those of transformers' Mask2Former, an independent implementation.

Its transformer gets no padding mask and ignores its pixel mask, so a batch of two sizes is compared
as it is: normalised pixels, and zeros beside them. Everything is computed in double precision.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from groupdetr.checkpoints.native import read
from groupdetr.deployment.transformers_folder import double_precision
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.registry import recipe_from_dict
from groupdetr.structures.images import Images
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights

from .test_huggingface import CLASSES

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
RECIPE = Mask2Former(
    num_classes=4,
    num_queries=20,
    channels=64,
    num_heads=4,
    encoder_layers=2,
    decoder_layers=4,
    encoder_dim_feedforward=80,
    dim_feedforward=96,
)
SIZES = {
    "num_queries": 20,
    "hidden_dim": 64,
    "feature_size": 64,
    "mask_feature_size": 64,
    "num_attention_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 5,
    "encoder_feedforward_dim": 80,
    "dim_feedforward": 96,
    "output_auxiliary_logits": True,
    "id2label": CLASSES,
    "label2id": {v: k for k, v in CLASSES.items()},
}
BACKBONES = {
    "transformers": ("ResNetConfig", {"out_features": ["stage1", "stage2", "stage3", "stage4"]}),
    "timm": (
        "TimmBackboneConfig",
        {"backbone": "resnet50", "use_pretrained_backbone": False, "out_indices": [1, 2, 3, 4]},
    ),
}


@pytest.fixture(scope="module", params=BACKBONES)
def theirs(request: pytest.FixtureRequest) -> nn.Module:
    """Their model with random weights and without a download.

    The number of its decoder layers includes the prediction before the first.
    """
    torch.manual_seed(0)
    make, options = BACKBONES[request.param]
    config = transformers.Mask2FormerConfig(
        backbone_config=getattr(transformers, make)(**options), **SIZES
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    roughen(model)
    return model.eval()


@torch.no_grad()
def roughen(model: nn.Module) -> None:
    """Change weights as training does.

    No norm is the identity, sampling depends on the token, and queries differ.
    """
    for name, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif "module.encoder" in name and value.ndim > 1:
            nn.init.kaiming_normal_(value, mode="fan_out", nonlinearity="relu")
        elif value.is_floating_point() and "offsets.bias" not in name:
            spread = 1.5 * value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
            value.normal_(float(value.ndim == 1 and name.endswith("weight")), spread)


@pytest.fixture(scope="module")
def folder(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("huggingface")
    theirs.save_pretrained(path)  # type: ignore[operator]
    return path


@pytest.fixture(scope="module")
def ours(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DetectionTransformer:
    """A model that is built and filled from an imported file."""
    out = tmp_path_factory.mktemp("ours") / "imported.safetensors"
    import_weights(folder, out)
    model = recipe_from_dict(read(out)[1]["recipe"]).build()
    assert len(load_weights(model, out).lines) == 1
    return model.eval()


def image(height: int, width: int) -> Tensor:
    """Return a smooth image, so that masks have an inside and an outside."""
    return nn.functional.interpolate(
        torch.randn(1, 3, height // 16, width // 16), (height, width), mode="bicubic"
    )[0]


BATCHES = {  # heights and widths
    "of one size": ((64, 96), (64, 96)),
    "padded": ((64, 128), (96, 32)),
    "padded to a multiple": ((60, 90), (50, 84)),
}


@pytest.fixture(params=BATCHES)
def images(request: pytest.FixtureRequest) -> Images:
    torch.manual_seed(1)
    return Images.from_list([image(*size).double() for size in BATCHES[request.param]])


def pad_to_multiple(pixels: Tensor) -> Tensor:
    """Pad to a multiple of 32 pixels, as the published code does before its network."""
    height, width = pixels.shape[-2:]
    return nn.functional.pad(pixels, (0, -width % 32, 0, -height % 32))


def test_classes_and_masks_of_all_predictions_are_theirs(
    theirs: nn.Module, ours: DetectionTransformer, images: Images
) -> None:
    with torch.no_grad(), double_precision(theirs, ours):
        our_layers = ours(images).layers
        outputs = theirs(pad_to_multiple(images.pixels))
    their_layers = [*outputs.auxiliary_logits, outputs]
    assert len(our_layers) == len(their_layers) == RECIPE.decoder_layers + 1
    # Masks must have an inside and an outside, or masked attention would not be tested.
    inside = torch.stack([layer["masks_queries_logits"] > 0 for layer in their_layers])
    assert 0.1 < inside.double().mean() < 0.9
    for our_layer, their_layer in zip(our_layers, their_layers):
        # Queries must differ, or equal outputs would prove little.
        assert their_layer["class_queries_logits"].std(1).mean() > 0.02
        assert (
            relative_error(our_layer.logits[:, 0], their_layer["class_queries_logits"]) < TOLERANCE
        )
        assert (
            relative_error(our_layer.masks.full()[:, 0], their_layer["masks_queries_logits"])
            < TOLERANCE
        )


def relative_error(values: Tensor, expected: Tensor) -> float:
    """Return the largest error, relative to the largest value."""
    return ((values - expected).abs().max() / expected.abs().max()).item()


def test_names_in_memory_are_those_of_files(
    theirs: nn.Module, ours: DetectionTransformer, tmp_path: Path
) -> None:
    torch.save(theirs.state_dict(), tmp_path / "memory.pth")
    again = ours.recipe.build()
    load_weights(again, tmp_path / "memory.pth")
    state = again.state_dict()
    assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items())


def test_an_import_reads_recipe_and_classes_from_the_folder(folder: Path, tmp_path: Path) -> None:
    import_weights(folder, tmp_path / "out.safetensors")
    metadata = read(tmp_path / "out.safetensors")[1]
    assert recipe_from_dict(metadata["recipe"]) == replace(RECIPE, preset="mask2former-r50")
    assert metadata["categories"] == [[row, name] for row, name in CLASSES.items()]
