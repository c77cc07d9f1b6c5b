"""All predictions equal those of transformers' Mask2Former, an implementation by others.

Its transformer is told nothing of padding and does not look at its pixel mask, so that a batch of two sizes is compared
as it is: normalised pixels, and zeros beside them. All is computed in double precision.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from groupdetr.checkpoints.native import read
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.experiments import recipe_from
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.images import Images
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights

from .test_huggingface import CLASSES, doubled

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
RECIPE = Mask2Former(
    num_classes=4,
    num_queries=20,
    channels=64,
    num_heads=4,
    encoder_layers=2,
    decoder_layers=4,
    encoder_hidden=80,
    hidden=96,
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
    """Random weights, no download; their decoder counts its layers with the prediction before the first."""
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
    """Weights as training might leave them: no norm is the identity, points depend on the token, and queries differ."""
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
    """By way of an imported file, which knows all that it takes."""
    out = tmp_path_factory.mktemp("ours") / "imported.safetensors"
    import_weights(folder, out)
    model = recipe_from(read(out)[1]["recipe"]).build()
    assert len(load_weights(model, out).lines) == 1
    return model.eval()


def picture(height: int, width: int) -> Tensor:
    """Smooth, so that masks have an inside and an outside."""
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
    return Images.from_list([picture(*size).double() for size in BATCHES[request.param]])


def padded(pixels: Tensor) -> Tensor:
    """As the published code does before its network, to a multiple of 32 pixels."""
    height, width = pixels.shape[-2:]
    return nn.functional.pad(pixels, (0, -width % 32, 0, -height % 32))


def test_classes_and_masks_of_all_predictions_are_theirs(
    theirs: nn.Module, ours: DetectionTransformer, images: Images
) -> None:
    with torch.no_grad(), doubled(theirs, ours):
        found = ours(images).layers
        said = theirs(padded(images.pixels))
    meant = [*said.auxiliary_logits, said]
    assert len(found) == len(meant) == RECIPE.decoder_layers + 1
    seen = torch.stack([other["masks_queries_logits"] > 0 for other in meant])
    assert (
        0.1 < seen.double().mean() < 0.9
    )  # masks have an inside and an outside, or they would not matter
    for layer, other in zip(found, meant):
        assert (
            other["class_queries_logits"].std(1).mean() > 0.02
        )  # queries differ, or this would show little
        assert error(layer.logits[:, 0], other["class_queries_logits"]) < TOLERANCE
        assert error(layer.masks.full()[:, 0], other["masks_queries_logits"]) < TOLERANCE


def error(found: Tensor, meant: Tensor) -> float:
    """The largest, in parts of the largest number."""
    return ((found - meant).abs().max() / meant.abs().max()).item()


def test_names_in_memory_are_those_of_files(
    theirs: nn.Module, ours: DetectionTransformer, tmp_path: Path
) -> None:
    torch.save(theirs.state_dict(), tmp_path / "memory.pth")
    load_weights(again := ours.recipe.build(), tmp_path / "memory.pth")
    state = again.state_dict()
    assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items())


def test_an_import_reads_recipe_and_classes_off_the_folder(folder: Path, tmp_path: Path) -> None:
    import_weights(folder, tmp_path / "out.safetensors")
    metadata = read(tmp_path / "out.safetensors")[1]
    assert recipe_from(metadata["recipe"]) == replace(RECIPE, preset="mask2former-r50")
    assert metadata["categories"] == [[row, name] for row, name in CLASSES.items()]
