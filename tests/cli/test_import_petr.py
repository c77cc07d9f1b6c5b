"""groupdetr import on files of PETR and PETRv2: the authors', mmdet3d's and older ones, told by what is in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from groupdetr import create_model
from groupdetr.checkpoints.native import read
from groupdetr.cli.main import main
from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.errors import WeightsError
from groupdetr.experiments import EXPERIMENTS, recipe_from
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.ops.boxes3d import LENGTH_FIRST
from groupdetr.structures.camera_images import CameraImages
from groupdetr.weights.loading import load_weights
from tests.parity import petr
from tests.weights.petr import petr_state
from tests.weights.test_petr import (
    KINDS,
    MMCV,
    MMENGINE,
    SMALL,
    SmallPETR,
    SmallPETRv2,
    built,
    written,
)

SMALL_PRESETS: dict[str, type[PETR]] = {"petr-v99": SmallPETR, "petrv2-v99": SmallPETRv2}
FULL = [pytest.param(PETR, id="petr-v99"), pytest.param(PETRv2, id="petrv2-v99")]
OLDER = {
    ".attentions.0.": ".self_attn.",
    ".attentions.1.": ".multihead_attn.",
    ".decoder.post_norm.": ".decoder.norm.",
}  # what mmcv called them before


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets with a narrow VoVNet: all kinds of names, a thousandth of the weights, groups of four queries."""
    for name, kind in SMALL_PRESETS.items():
        recipe = kind(**SMALL | {"preset": name, "num_groups": 1})
        monkeypatch.setitem(EXPERIMENTS, name, replace(EXPERIMENTS[name], recipe=recipe))


def older(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in state.items():
        for new, old in OLDER.items():
            name = name.replace(new, old)
        found[name] = value
    assert len(found.keys() - state.keys()) == 2 * 8 + 2  # of two layers
    return found


def length_first(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As mmdet3d says sizes."""
    last = [name for name in state if ".reg_branches." in name and name.split(".")[-2] == "4"]
    return state | {name: state[name][LENGTH_FIRST] for name in last}


def imported(source: Path, *options: str) -> tuple[DetectionTransformer, dict[str, Any]]:
    """What the command makes of a file, and what the new one says of itself."""
    out = source.with_name("imported.safetensors")
    assert main(["import", str(source), "--out", str(out), *options]) == 0
    metadata = read(out)[1]
    model = recipe_from(metadata["recipe"]).build().eval()
    load_weights(model, out)
    return model, metadata


def seen(moments: int) -> CameraImages:
    images = petr.images(moments)
    images.pixels.normal_(generator=torch.Generator().manual_seed(2))
    return images


def assert_same_answers(found: DetectionTransformer, model: DetectionTransformer) -> None:
    images = seen(2 if isinstance(model.recipe, PETRv2) else 1)
    with torch.no_grad():
        answer, meant = found(images).answer, model(images).answer
    assert torch.equal(answer.logits, meant.logits)
    assert torch.equal(answer.boxes, meant.boxes)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("named", [dict, older], ids=["today's names", "older names"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_authors_file_becomes_one_of_ours_that_answers_alike(
    kind: type[PETR], named: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = built(kind)
    found, metadata = imported(written(tmp_path / "latest.pth", named(petr_state(model)), MMCV))
    assert_same_answers(found, model)
    assert type(found.recipe) is kind
    assert (metadata["recipe"]["num_groups"], metadata["imgsz"]) == (3, 320)
    assert [name for _, name in metadata["categories"]][::9] == ["car", "traffic_cone"]
    told = capsys.readouterr().out
    assert "read as the authors' PETR" in told
    assert "groupdetr predict" in told


@pytest.mark.usefixtures("narrow")
def test_mmdet3ds_file_is_recognised_by_what_stands_beside_its_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = built(SmallPETR)
    state = length_first(petr_state(model))
    assert_same_answers(imported(written(tmp_path / "petr.pth", state, MMENGINE))[0], model)
    assert "read as mmdet3d's PETR" in capsys.readouterr().out


@pytest.mark.usefixtures("narrow")
def test_whose_a_bare_file_is_must_be_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = built(SmallPETR)
    path = written(tmp_path / "bare.pth", petr_state(model))
    assert (
        main(["import", str(path), "--out", str(tmp_path / "out.safetensors")])
        == WeightsError.exit_code
    )
    assert '--layout "the authors\' PETR"' in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    assert_same_answers(imported(path, "--layout", "the authors' PETR")[0], model)
    path = written(tmp_path / "bare.pth", length_first(petr_state(model)))
    assert_same_answers(imported(path, "--layout", "mmdet3d's PETR")[0], model)


@pytest.mark.usefixtures("narrow")
def test_of_several_groups_one_can_be_kept(tmp_path: Path) -> None:
    model = built(SmallPETR)
    found, metadata = imported(
        written(tmp_path / "latest.pth", petr_state(model), MMCV), "--groups", "1"
    )
    assert metadata["recipe"]["num_groups"] == 1
    assert_same_answers(found, model)


@pytest.mark.usefixtures("narrow")
def test_a_file_to_start_from_gives_its_backbone_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which it says, where a whole detector is asked for."""
    start = {
        name: x
        for name, x in petr_state(built(SmallPETR)).items()
        if name.startswith("img_backbone.")
    }
    heads = {f"bbox_head.{branch}_convs.0.conv.weight": torch.zeros(1) for branch in ("cls", "reg")}
    path = written(tmp_path / "fcos3d_vovnet_imgbackbone-remapped.pth", start | heads)
    network = create_model("petr-v99", pretrained_backbone=str(path)).backbone.network
    wanted = built(SmallPETR).backbone.network.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in network.state_dict().items())
    assert (
        main(["import", str(path), "--out", str(tmp_path / "out.safetensors")])
        == WeightsError.exit_code
    )
    assert "--pretrained-backbone FILE" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.fair_sample
@pytest.mark.parametrize("kind", FULL)
def test_the_same_at_full_size(kind: type[PETR], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = kind(num_groups=2).build().eval()
    path = written(tmp_path / "latest.pth", petr_state(model), MMCV)
    found, metadata = imported(path)
    assert (metadata["recipe"]["num_groups"], metadata["recipe"]["num_queries"]) == (2, 900)
    assert_same_answers(found, model)
