"""Small LW-DETR and RF-DETR of transformers, with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.images import Images

GROUPS, QUERIES, CLASSES = 3, 5, 4
DETECTOR: dict[str, Any] = {
    "num_queries": QUERIES,
    "group_detr": GROUPS,
    "num_labels": CLASSES,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_ffn_dim": 16,
    "decoder_n_points": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 4,
}


def lw_detr(scales: Sequence[float] = (2.0, 0.5), width: int = 24) -> nn.Module:
    """Return transformers' LW-DETR with levels of these sizes."""
    transformers = pytest.importorskip("transformers")
    backbone = transformers.LwDetrViTConfig(
        image_size=1024,
        hidden_size=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        window_block_indices=[0, 2],
        out_indices=[2, 3],
    )
    config = transformers.LwDetrConfig(
        backbone_config=backbone, projector_scale_factors=list(scales), **DETECTOR
    )
    return randomised(transformers.LwDetrForObjectDetection(config))


def rf_detr(architecture: str = "RfDetrForObjectDetection", **options: Any) -> nn.Module:
    """Return transformers' RF-DETR, whose norms have the epsilon of Roboflow's."""
    transformers = pytest.importorskip("transformers")
    # The widths of the head of masks are those of Roboflow's.
    options = {"intermediate_size": 4 * DETECTOR["d_model"], **options}
    backbone = transformers.RfDetrDinov2Config(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=6,
        image_size=64,
        patch_size=16,
        num_windows=2,
        out_indices=[1, 2],
    )
    config = transformers.RfDetrConfig(
        backbone_config=backbone, layer_norm_eps=1e-6, dropout=0.0, **{**DETECTOR, **options}
    )
    return randomised(getattr(transformers, architecture)(config))


def randomised(model: nn.Module) -> nn.Module:
    """Give every parameter and statistic random values, in evaluation mode.

    Tables of offsets and last layers of heads are zero in a new model, and would hide mistakes.
    """
    generator = torch.Generator().manual_seed(0)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point():
            continue
        is_scale = name.endswith("running_var") or ("norm" in name and name.endswith("weight"))
        with torch.no_grad():
            if is_scale:
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            else:
                scale = value.shape[-1] ** -0.5 if value.ndim > 1 else 0.1
                value.copy_(torch.randn(value.shape, generator=generator) * scale)
    return model.eval()


def save_folder(model: nn.Module, folder: Path) -> Path:
    """Write a folder as transformers does, and return it."""
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


@torch.no_grad()
def largest_difference(
    theirs: nn.Module, ours: DetectionTransformer, height: int, width: int = 128
) -> float:
    """Return the largest difference of logits, boxes and masks between both, in an image of noise.

    The logits of masks are compared relative to the largest one.
    """
    pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    answer = theirs(pixels)
    padding = torch.zeros(1, height, width, dtype=torch.bool)
    final = ours.eval()(Images(pixels, padding, False)).final
    differences: list[Tensor] = [answer.logits - final.logits, answer.pred_boxes - final.boxes]
    if final.has_masks:
        masks = answer.pred_masks
        differences.append((masks - final.masks.full()) / masks.abs().max())
    return max(float(difference.abs().max()) for difference in differences)
