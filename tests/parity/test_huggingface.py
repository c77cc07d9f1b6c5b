"""Outputs and losses equal those of transformers' Conditional DETR and DAB-DETR.

These are independent implementations with known differences from the authors' code. Conditional
DETR's total loss has the weight 1 instead of 2 for classes, DAB-DETR's the other way round, so the
losses are compared one by one, without their weights. DAB-DETR's inverse sigmoid is clamped at 1e-5
instead of 1e-3, and its GIoU has no 1e-6 in the denominators.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from groupdetr.checkpoints.native import read
from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.deployment.transformers_folder import double_precision
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.registry import recipe_from_dict
from groupdetr.structures.images import Images
from groupdetr.structures.targets import Target
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
CLASSES = {0: "N/A", 1: "person", 2: "bicycle", 3: "car"}
SMALL = {
    "num_classes": 4,
    "num_queries": 20,
    "channels": 64,
    "num_heads": 4,
    "dim_feedforward": 96,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "dropout": 0.0,
}
SIZES = {
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 20,
    "dropout": 0.0,
    "auxiliary_loss": True,
    "id2label": CLASSES,
    "label2id": {v: k for k, v in CLASSES.items()},
}


@dataclass(frozen=True)
class Family:
    """A detector of theirs, and the recipe of ours that equals it."""

    config: str
    model: str
    width: dict[str, int]
    recipe: ConditionalDETR


FAMILIES = {
    "conditional-detr": Family(
        "ConditionalDetrConfig",
        "ConditionalDetrForObjectDetection",
        {"d_model": 64},
        ConditionalDETR(**SMALL),  # type: ignore[arg-type]
    ),
    "dab-detr": Family(
        "DabDetrConfig",
        "DabDetrForObjectDetection",
        {"hidden_size": 64},
        DABDETR(**SMALL, eps=1e-5),  # type: ignore[arg-type]
    ),
    "dab-detr-2-patterns": Family(
        "DabDetrConfig",
        "DabDetrForObjectDetection",
        {"hidden_size": 64, "num_patterns": 2, "temperature_height": 10, "temperature_width": 10},
        DABDETR(**SMALL, eps=1e-5, num_patterns=2, temperature=10.0),  # type: ignore[arg-type]
    ),
}
# The backbones are read in the same way for both detectors.
CASES = [
    *(("conditional-detr", backbone) for backbone in ("timm", "timm dilated", "transformers")),
    ("dab-detr", "timm"),
    *(
        pytest.param(("dab-detr", backbone), marks=pytest.mark.slow)
        for backbone in ("timm dilated", "transformers")
    ),
    ("dab-detr-2-patterns", "timm"),
]


def build(family: Family, backbone: str) -> nn.Module:
    """Build their model with random weights and without a download.

    ``backbone`` is "timm", "timm dilated" (DC5), or "transformers", their own ResNet-50.
    """
    torch.manual_seed(0)
    make = getattr(transformers, family.config)
    if backbone == "transformers":
        config = make(
            **SIZES,
            **family.width,
            use_timm_backbone=False,
            backbone=None,
            use_pretrained_backbone=False,
            backbone_config=transformers.ResNetConfig(out_features=["stage4"]),
        )
    else:
        config = make(**SIZES, **family.width, dilation=backbone == "timm dilated")
        config.backbone_config.use_pretrained_backbone = False
    model = getattr(transformers, family.model)(config)
    roughen(model)
    return model.eval()


@torch.no_grad()
def roughen(model: nn.Module) -> None:
    """Change weights so that no norm is the identity, no box head is zero, and queries differ."""
    for name, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif "backbone" in name and value.ndim == 1:
            value.normal_(0.8, 0.1) if name.endswith("weight") else value.normal_(0, 0.03)
        elif "backbone" in name:
            nn.init.kaiming_normal_(value, mode="fan_out", nonlinearity="relu")
        elif value.ndim > 1:
            value.normal_(0, gain(name) * value[0].numel() ** -0.5)


def gain(name: str) -> float:
    """Return the factor of the standard deviation of a matrix.

    Attention is sharp but adds little to its input, so that tokens and queries remain different.
    Boxes change little: the smaller they are, the more DAB-DETR's attention enlarges rounding
    errors.
    """
    if "bbox" in name:
        return 0.5
    projection = re.search(r"attn\.(?:(?:self|cross)_attn[._])?([qkvo])[a-z_]*proj", name)
    if not projection:
        return 1.5
    is_cross_attention = "encoder_attn" in name or "cross_attn" in name
    gains = {"q": 5.0, "k": 5.0, "v": 3.0 if is_cross_attention else 0.5, "o": 1.0}
    return gains[projection[1]]


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def family(case: tuple[str, str]) -> Family:
    return FAMILIES[case[0]]


@pytest.fixture(scope="module")
def theirs(case: tuple[str, str], family: Family) -> nn.Module:
    return build(family, case[1])


@pytest.fixture(scope="module")
def folder(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `save_pretrained` writes it, with the tensor names of before 5.0."""
    path = tmp_path_factory.mktemp("huggingface")
    theirs.save_pretrained(path)  # type: ignore[operator]
    return path


@pytest.fixture(scope="module")
def ours(theirs: nn.Module, family: Family, folder: Path) -> nn.Module:
    model = family.recipe.with_options(dilated=theirs.config.dilation).build()  # type: ignore[union-attr]
    assert len(load_weights(model, folder).lines) == 1
    return model


@pytest.fixture(scope="module")
def images() -> Images:
    """A batch of two sizes. Each image is padded, on another side."""
    torch.manual_seed(1)
    coarse = [torch.randn(1, 3, 6, 4), torch.randn(1, 3, 3, 8)]
    return Images.from_list(
        [nn.functional.interpolate(x, scale_factor=24, mode="bicubic")[0] for x in coarse]
    )


TARGETS = [
    Target(
        torch.tensor([1, 3, 3]),
        torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.5, 0.9], [0.7, 0.2, 0.1, 0.1]]),
    ),
    Target(torch.tensor([2]), torch.tensor([[0.5, 0.5, 0.3, 0.6]])),
]


def test_logits_and_boxes_are_theirs(theirs: nn.Module, ours: nn.Module, images: Images) -> None:
    """In double precision: sharp attention enlarges rounding errors, up to 5e-4 in single."""
    pixels = images.pixels.double()
    with torch.no_grad(), double_precision(theirs, ours.eval()):
        predictions = ours(replace(images, pixels=pixels)).final
        expected = theirs(pixels, pixel_mask=~images.padding)
    # Queries must differ, or equal outputs would prove little.
    assert expected.logits.std(1).mean() > 0.02
    assert (predictions.logits - expected.logits).abs().max() < TOLERANCE
    assert (predictions.boxes - expected.pred_boxes).abs().max() < TOLERANCE


def test_losses_of_every_layer_are_theirs(
    theirs: nn.Module, ours: nn.Module, family: Family, images: Images
) -> None:
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in TARGETS]
    with torch.no_grad():
        losses = family.recipe.criterion()(ours.train()(images), TARGETS)
        expected = theirs(images.pixels, pixel_mask=~images.padding, labels=labels).loss_dict
    weights = {term.name: term.loss_weight for term in family.recipe.terms()}
    for layer, suffix in ((0, "_0"), (1, "_1"), (2, "")):
        for term, name in (("focal", "loss_ce"), ("l1", "loss_bbox"), ("giou", "loss_giou")):
            loss = losses[f"layer{layer}/{term}"] / weights[term]
            difference = loss - expected[name + suffix]
            assert difference.abs() < TOLERANCE, f"{term} of layer {layer}"


def test_names_of_modules_in_memory_are_read_like_those_of_files(
    theirs: nn.Module, ours: nn.Module, images: Images, tmp_path: Path
) -> None:
    save_file(
        {name: value.clone() for name, value in theirs.state_dict().items()},
        tmp_path / "memory.safetensors",
    )
    again = ours.recipe.build()  # type: ignore[union-attr, operator]
    load_weights(again, tmp_path / "memory.safetensors")
    with torch.no_grad():
        assert torch.equal(again.eval()(images).final.logits, ours.eval()(images).final.logits)


def test_an_import_reads_recipe_and_classes_from_the_folder(
    theirs: nn.Module, family: Family, folder: Path, tmp_path: Path
) -> None:
    import_weights(folder, tmp_path / "out.safetensors")
    metadata = read(tmp_path / "out.safetensors")[1]
    dilated = theirs.config.dilation  # type: ignore[union-attr]
    recipe = recipe_from_dict(metadata["recipe"])
    preset = "dab-detr-r50" if isinstance(recipe, DABDETR) else "conditional-detr-r50"
    if dilated:
        preset += "-dc5"
    assert recipe == family.recipe.with_options(dilated=dilated, preset=preset)
    assert metadata["categories"] == [[row, name] for row, name in CLASSES.items()]
    # The file alone has its configuration beside it.
    alone = open_checkpoint(folder / "model.safetensors")
    assert alone.metadata == open_checkpoint(folder).metadata
