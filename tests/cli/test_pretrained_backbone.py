"""Group DETR v2 at small size: a self-supervised encoder, then many classes, then fewer classes."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import split

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from groupdetr import Detector, create_model
from groupdetr.cli.main import main
from groupdetr.data.synthetic import SyntheticConfig, write
from groupdetr.modeling.backbones.vit import SMALL as SMALL_VIT
from tests.runs import read_log

OPTIONS = split(
    "--model dino-vit-tiny --groups 2 --imgsz 64 --batch 4 --steps 3 --eval-every 9 --workers 0 "
    "--threads 1 --device cpu --layer-decay 0.7"
)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A checkpoint of a masked autoencoder, as the authors of MAE save theirs.

    It has patches of 14 pixels, a class token and position embeddings, and parts of MAE's decoder.
    """
    torch.manual_seed(0)
    vit = VisionTransformer(
        patch_size=14,
        embed_dim=SMALL_VIT.width,
        depth=SMALL_VIT.depth,
        num_heads=SMALL_VIT.num_heads,
        num_classes=0,
    )
    state = vit.state_dict()
    state["mask_token"] = torch.zeros(1, 1, 8)
    state["decoder_embed.weight"] = torch.zeros(8, 96)
    path = tmp_path / "mae.pth"
    torch.save({"model": state}, path)
    return path


def write_shapes(folder: Path, num_classes: int, seed: int) -> None:
    """Write a synthetic dataset of 12 training and 4 validation images."""
    config = SyntheticConfig(image_size=64, num_classes=num_classes, max_objects=3, seed=seed)
    write(config, folder, {"train": 12, "val": 4})


def test_pretraining_on_many_classes_and_training_on_fewer_take_three_commands(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many_classes, few_classes = tmp_path / "objects365", tmp_path / "coco"
    write_shapes(many_classes, num_classes=6, seed=1)
    write_shapes(few_classes, num_classes=3, seed=2)
    first, second = tmp_path / "runs/objects365", tmp_path / "runs/coco"

    backbone = ["--pretrained-backbone", str(encoder)]
    assert main(["train", str(many_classes), *OPTIONS, *backbone, "--out", str(first)]) == 0
    weights = ["--weights", str(first / "weights/best.safetensors")]
    assert main(["train", str(few_classes), *OPTIONS, *weights, "--out", str(second)]) == 0
    assert main(["val", str(second), "--workers", "0"]) == 0

    assert "classes: 3 rows loaded by name, 0 newly initialised" in capsys.readouterr().out
    assert Detector(first).names[:3] == Detector(second).names
    assert "AP" in json.loads((second / "val/metrics.json").read_text())
    assert all(record["loss"] > 0 for record in read_log(second) if "loss" in record)


def test_the_backbone_has_the_blocks_of_the_encoder_and_its_patches_resampled_to_16_pixels(
    encoder: Path,
) -> None:
    model = create_model("dino-vit-tiny", pretrained_backbone=str(encoder))
    state = torch.load(encoder, weights_only=True)["model"]
    backbone = model.backbone.state_dict()
    block = "blocks.2.mlp.fc1.weight"
    assert torch.equal(backbone[f"network.vit.{block}"], state[block])
    patches = "patch_embed.proj.weight"
    assert state[patches].shape[-2:] == (14, 14)
    assert backbone[f"network.vit.{patches}"].shape[-2:] == (16, 16)
