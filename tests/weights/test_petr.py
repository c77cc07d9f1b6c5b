"""Checkpoints of PETR and PETRv2 as their authors and mmdet3d 1.x write them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.vovnet import VoVNetWidths, vovnet99
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.weights.loading import load_weights
from tests.parity import petr

from .petr import petr_state
from .test_loading import same

NARROW = VoVNetWidths(
    stem=4, conv_channels=(6, 6, 6, 6), out_channels=(8, 8, 8, 8), blocks=(1, 1, 2, 1)
)
SMALL: dict[str, Any] = {
    "num_groups": 3,
    "num_queries": 4,
    "channels": 16,
    "num_heads": 2,
    "decoder_layers": 2,
    "dim_feedforward": 24,
}
MMCV, MMENGINE = {"mmcv_version": "1.4.0", "epoch": 24}, {"mmengine_version": "0.7.1", "epoch": 24}


@dataclass(frozen=True)
class SmallPETR(PETR):
    def build_backbone(self) -> Backbone:
        return vovnet99(self.pretrained_backbone, False, nn.Identity(), NARROW)


@dataclass(frozen=True)
class SmallPETRv2(SmallPETR, PETRv2):
    pass


KINDS = [pytest.param(SmallPETR, id="petr"), pytest.param(SmallPETRv2, id="petrv2")]


def build_small(kind: type[PETR], seed: int = 0, **options: Any) -> DetectionTransformer:
    torch.manual_seed(seed)
    return replace(kind(**SMALL), **options).build().eval()


def write_checkpoint(
    path: Path, state: dict[str, Tensor], meta: dict[str, Any] | None = None
) -> Path:
    torch.save({"meta": meta or {}, "state_dict": state, "optimizer": {"state": {}}}, path)
    return path


def published(version: int) -> Iterator[str]:
    """Yield the names of their files."""
    both = ("weight", "bias")
    convs = [f"stem.stem_{i}" for i in (1, 2, 3)]
    for stage, blocks in {2: 1, 3: 3, 4: 9, 5: 3}.items():
        for block in range(1, blocks + 1):
            name = f"OSA{stage}_{block}"
            convs += [f"stage{stage}.{name}.layers.{i}.{name}_{i}" for i in range(5)]
            convs += [f"stage{stage}.{name}.concat.{name}_concat"]
            yield from (f"img_backbone.stage{stage}.{name}.ese.fc.{part}" for part in both)
    norm = (*both, "running_mean", "running_var", "num_batches_tracked")
    for conv in convs:
        yield from (
            f"img_backbone.{conv}/{part}"
            for part in ("conv.weight", *(f"norm.{part}" for part in norm))
        )
    necks = ("lateral_convs.0", "lateral_convs.1", "fpn_convs.0")
    yield from (f"img_neck.{conv}.conv.{part}" for conv in necks for part in both)
    yield from (f"pts_bbox_head.{name}" for name in ("code_weights", "reference_points.weight"))
    head = ["input_proj", "transformer.decoder.post_norm"]
    head += [
        f"{name}.{i}"
        for name in ("position_encoder", "adapt_pos3d", "query_embedding")
        for i in (0, 2)
    ]
    head += ["fpe.conv_reduce", "fpe.conv_expand"] if version == 2 else []
    for i in range(6):
        layer = f"transformer.decoder.layers.{i}"
        head += [f"{layer}.norms.{norm}" for norm in range(3)] + [
            f"{layer}.ffns.0.layers.{j}" for j in ("0.0", "1")
        ]
        head += [f"{layer}.attentions.{j}.attn.out_proj" for j in (0, 1)]
        inputs = (f"{layer}.attentions.{j}.attn.in_proj_{part}" for j in (0, 1) for part in both)
        yield from (f"pts_bbox_head.{name}" for name in inputs)
        head += [f"cls_branches.{i}.{j}" for j in (0, 1, 3, 4, 6)]
        split = [
            "reg_branch.0",
            "reg_branch.3",
            *(f"task_heads.{part}.{j}" for part in range(5) for j in (0, 2)),
        ]
        head += [f"reg_branches.{i}.{j}" for j in (split if version == 2 else (0, 2, 4))]
    yield from (f"pts_bbox_head.{name}.{part}" for name in head for part in both)


@pytest.mark.parametrize(
    ("kind", "version", "count"), [(PETR, 1, 854), (PETRv2, 2, 966)], ids=["petr", "petrv2"]
)
def test_the_published_tensors_are_exactly_ours(kind: type[PETR], version: int, count: int) -> None:
    """`tests.parity.test_petr_golden` proves by predictions that they fill the model."""
    with torch.device("meta"):
        names = petr_state(kind().build())
    assert [*sorted(names)] == [*sorted(published(version))]
    assert len(names) == count


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_of_one_group_loads_the_first(kind: type[PETR], tmp_path: Path) -> None:
    model, one = build_small(kind), build_small(kind, seed=1, num_groups=1)
    load_weights(
        one, write_checkpoint(tmp_path / "latest.pth", petr_state(model), MMCV), file_groups=3
    )
    frames = 2 if kind is SmallPETRv2 else 1
    images = petr.images(frames)
    images.pixels.normal_(generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours, expected = one(images).final, model(images).final
    assert torch.equal(ours.logits, expected.logits)
    assert torch.equal(ours.boxes, expected.boxes)


def test_a_file_of_petrv2_needs_no_origin(tmp_path: Path) -> None:
    """mmdet3d has no PETRv2. But a file that mmengine wrote is not the authors'."""
    model, loaded = build_small(SmallPETRv2), build_small(SmallPETRv2, seed=1)
    load_weights(loaded, write_checkpoint(tmp_path / "bare.pth", petr_state(model)), file_groups=3)
    assert same(loaded, model)
    with pytest.raises(WeightsError, match="it does not say which"):
        load_weights(
            loaded,
            write_checkpoint(tmp_path / "other.pth", petr_state(model), MMENGINE),
            file_groups=3,
        )


def test_heads_of_petr_must_be_equal(tmp_path: Path) -> None:
    state = petr_state(build_small(SmallPETR))
    state["pts_bbox_head.cls_branches.1.6.bias"] = state["pts_bbox_head.cls_branches.1.6.bias"] + 1
    with pytest.raises(WeightsError, match="share these, which differ in the file"):
        load_weights(
            build_small(SmallPETR), write_checkpoint(tmp_path / "x.pth", state, MMCV), file_groups=3
        )
