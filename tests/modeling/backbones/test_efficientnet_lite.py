"""EfficientNet-Lite0 with the weights that are installed with the library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as F

from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones import efficientnet_lite
from groupdetr.modeling.backbones.backbone import pad_to_multiple
from groupdetr.modeling.backbones.efficientnet_lite import LITE0, installed_weights
from groupdetr.modeling.backbones.frozen_batch_norm import NormedConv2d, NormedConv2dSame
from groupdetr.modeling.backbones.registry import BackboneOptions, build_backbone

OPTIONS = BackboneOptions(
    pretrained=True,
    strides=(8, 16),
    dilated=False,
    frozen_stages=2,
    freeze_norms=True,
    recompute=False,
    multiple=1,
    augment=None,
    bgr=False,
    channels=64,
)


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    """timm's network with the same weights, computed by timm alone."""
    network = timm.create_model(LITE0).eval()
    weights = installed_weights()
    assert weights is not None
    network.load_state_dict(weights)
    return network


@pytest.mark.parametrize("size", [(96, 128), (101, 67)])
def test_the_maps_are_those_of_timm_although_norms_are_folded(
    size: tuple[int, int], classifier: nn.Module
) -> None:
    """Norms carry the activation, and convolutions of stride 2 pad for themselves.

    Images are padded to multiples of 32, and the maps end where the image does.
    """
    backbone = build_backbone(LITE0, OPTIONS)
    folded = [m for m in backbone.modules() if isinstance(m, NormedConv2d)]
    assert len(folded) == 33
    assert sum(isinstance(module, NormedConv2dSame) for module in folded) == 4
    pixels = torch.randn(2, 3, *size)
    assert backbone.normalisation is not None
    normalised = backbone.normalisation(pixels, None)
    with torch.no_grad():
        maps = backbone(pixels)
        expected = classifier.forward_intermediates(  # type: ignore[operator]
            pad_to_multiple(normalised, 32), indices=[2, 3], intermediates_only=True
        )
    for x, y in zip(maps, expected, strict=True):
        rows, columns = x.shape[-2:]
        torch.testing.assert_close(x, y[..., :rows, :columns], atol=1e-4, rtol=1e-4)


def test_only_the_stages_after_the_frozen_ones_are_trained() -> None:
    backbone = build_backbone(LITE0, OPTIONS).train()
    sum(x.sum() for x in backbone(torch.randn(1, 3, 64, 64))).backward()
    trained = {name.split(".")[3] for name, p in backbone.named_parameters() if p.grad is not None}
    assert trained == {"3", "4"}  # blocks.3 and blocks.4 end at stride 16
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))


# Category of COCO -> the classes of ImageNet that are the same thing
SAME = {
    6: {654, 779, 874},  # bus
    7: {466, 547, 705, 820, 829},  # train
    13: {919},  # stop sign, "street sign"
    17: set(range(281, 286)),  # cat
    18: set(range(151, 269)),  # dog
    22: {101, 385, 386},  # elephant
    23: set(range(294, 298)),  # bear
    24: {340},  # zebra
    52: {954},  # banana
    55: {950},  # orange
    56: {937},  # broccoli
    59: {963},  # pizza
    70: {861},  # toilet
    73: {620, 681},  # laptop
    76: {508, 810},  # keyboard
    85: {409, 530, 892},  # clock
    88: {850},  # teddy bear
}


def test_the_weights_recognise_objects_of_real_images(
    classifier: nn.Module, real_data: Path
) -> None:
    """Most boxes of at least 96 x 96 pixels are classified correctly, of 1,000 classes."""
    hits = []
    for split in ("train", "val"):
        content = json.loads((real_data / f"tiny_coco/{split}.json").read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for annotation in content["annotations"]:
            expected = SAME.get(annotation["category_id"], set())
            if not expected or annotation["iscrowd"] or annotation["area"] < 96**2:
                continue
            x, y, width, height = annotation["bbox"]
            image = Image.open(real_data / "tiny_coco/images" / names[annotation["image_id"]])
            crop = image.convert("RGB").crop((x, y, x + width, y + height)).resize((224, 224))
            pixels = F.to_dtype(F.pil_to_tensor(crop), torch.float32, scale=True)
            with torch.no_grad():
                logits = classifier(F.normalize(pixels, [0.5] * 3, [0.5] * 3).unsqueeze(0))
            hits.append(int(logits.argmax()) in expected)
    assert len(hits) >= 10
    assert sum(hits) >= 0.6 * len(hits), f"{sum(hits)} of {len(hits)}"


def test_a_file_that_was_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"other weights")
    monkeypatch.setattr(efficientnet_lite, "_installed_file", lambda: file)
    with pytest.raises(WeightsError, match="SHA-256"):
        build_backbone(LITE0, OPTIONS)


def test_without_the_package_the_weights_are_those_of_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def build(name: str, options: BackboneOptions) -> None:
        asked.append((name, options.pretrained))

    monkeypatch.setattr(efficientnet_lite, "_PACKAGE", "not_installed_anywhere")
    monkeypatch.setattr("groupdetr.modeling.backbones.registry.build_timm_backbone", build)
    build_backbone(LITE0, OPTIONS)
    assert asked == [(LITE0, True)]
