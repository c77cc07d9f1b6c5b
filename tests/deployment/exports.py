"""Weights files of small detectors with random weights, to export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from groupdetr.checkpoints import native
from groupdetr.registry import create_model, recipe_to_dict

CATEGORIES = [[7, "cat"], [3, "dog"], [9, "hen"]]
IMGSZ = 64
SCORE_THRESHOLD = 0.3
SMALL: dict[str, Any] = {
    "num_groups": 2,
    "channels": 32,
    "num_heads": 2,
    "dim_feedforward": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 8,
}


def write_weights(
    file: Path,
    preset: str = "conditional-detr-tiny",
    score_threshold: float | None = None,
    **sizes: Any,
) -> Path:
    """Write a weights file of a preset. Its scores are spread over all values from 0 to 1.

    With the scores of an untrained detector, which are all nearly equal, the order of the
    detections would depend on rounding.
    """
    torch.manual_seed(0)
    options = {"num_classes": len(CATEGORIES), "pretrained_backbone": False, **sizes}
    model = create_model(preset, **options)
    for name, parameter in model.named_parameters():
        if "class" in name:
            mean, std = (-1.0, 1.0) if name.endswith("bias") else (0.0, 0.3)
            nn.init.normal_(parameter, mean, std)
    metadata: dict[str, Any] = {
        "recipe": recipe_to_dict(model.recipe),
        "categories": CATEGORIES,
        "imgsz": IMGSZ,
    }
    if score_threshold is not None:
        metadata["score_threshold"] = score_threshold
    native.save(model, file, metadata)
    return file
