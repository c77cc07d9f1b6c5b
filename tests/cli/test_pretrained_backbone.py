"""The way of Group DETR v2 at small size: a self-supervised encoder, many classes, then the classes that count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from groupdetr import Detector
from groupdetr.cli.main import main
from groupdetr.data.synthetic import SyntheticConfig, write
from groupdetr.detectors.tiny import SMALL_VIT
from tests.runs import log

QUICK = (
    "--model",
    "dino-vit-tiny",
    "--groups",
    "2",
    "--imgsz",
    "64",
    "--batch",
    "4",
    "--steps",
    "3",
    "--eval-every",
    "9",
    "--workers",
    "0",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--layer-decay",
    "0.7",
)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """As MAE's authors save theirs: patches of 14 pixels, a class token and positions, and the decoder that is left."""
    torch.manual_seed(0)
    vit = VisionTransformer(
        patch_size=14,
        embed_dim=SMALL_VIT.width,
        depth=SMALL_VIT.depth,
        num_heads=SMALL_VIT.num_heads,
        num_classes=0,
    )
    state = {
        **vit.state_dict(),
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_embed.weight": torch.zeros(8, 96),
    }
    torch.save({"model": state}, tmp_path / "mae.pth")
    return tmp_path / "mae.pth"


def test_encoder_then_many_classes_then_few_in_three_commands(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many, few = tmp_path / "objects365", tmp_path / "coco"
    write(
        SyntheticConfig(image_size=64, num_classes=6, max_objects=3, seed=1),
        many,
        {"train": 12, "val": 4},
    )
    write(
        SyntheticConfig(image_size=64, num_classes=3, max_objects=3, seed=2),
        few,
        {"train": 12, "val": 4},
    )
    first, second = tmp_path / "runs/objects365", tmp_path / "runs/coco"

    assert (
        main(
            ["train", str(many), *QUICK, "--pretrained-backbone", str(encoder), "--out", str(first)]
        )
        == 0
    )
    weights = str(first / "weights/best.safetensors")
    assert main(["train", str(few), *QUICK, "--weights", weights, "--out", str(second)]) == 0
    assert main(["val", str(second), "--workers", "0"]) == 0

    assert "classes: 3 rows taken by name, 0 started anew" in capsys.readouterr().out
    assert Detector(first).names[:3] == Detector(second).names
    assert "AP" in json.loads((second / "val/metrics.json").read_text())
    assert all(record["loss"] > 0 for record in log(second) if "loss" in record)


def test_the_encoder_starts_where_its_file_ends(encoder: Path) -> None:
    """Blocks as they are; patches resampled from 14 to 16 pixels."""
    from groupdetr import create_model

    model = create_model("dino-vit-tiny", pretrained_backbone=str(encoder))
    state = torch.load(encoder, weights_only=True)["model"]
    vit = model.backbone.network.vit
    assert torch.equal(vit.blocks[2].mlp.fc1.weight, state["blocks.2.mlp.fc1.weight"])
    assert vit.patch_embed.proj.weight.shape[-2:] == (16, 16)
