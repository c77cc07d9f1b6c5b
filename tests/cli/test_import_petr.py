"""`groupdetr import` on checkpoints of PETR and PETRv2 by their authors and by mmdet3d."""

from __future__ import annotations

from collections.abc import Callable
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
from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.ops.boxes3d import LENGTH_FIRST
from groupdetr.registry import recipe_from_dict
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
    build_small,
    write_checkpoint,
)

State = dict[str, Tensor]
SMALL_PRESETS: dict[str, type[PETR]] = {"petr-v99": SmallPETR, "petrv2-v99": SmallPETRv2}
FULL_SIZE = [  # PETRv2 has all modules of PETR, and runs in CI.
    pytest.param(PETR, id="petr-v99"),
    pytest.param(PETRv2, id="petrv2-v99", marks=pytest.mark.fair_sample),
]
# A part of a tensor's name -> what earlier versions of mmcv called it.
EARLIER_NAMES = {
    ".attentions.0.": ".self_attn.",
    ".attentions.1.": ".multihead_attn.",
    ".decoder.post_norm.": ".decoder.norm.",
}


@pytest.fixture
def small_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets with a narrow VoVNet and groups of four queries.

    They have all kinds of tensors and a thousandth of the weights.
    """
    for name, recipe_class in SMALL_PRESETS.items():
        recipe = recipe_class(**SMALL | {"preset": name, "num_groups": 1})
        monkeypatch.setitem(EXPERIMENTS, name, replace(EXPERIMENTS[name], recipe=recipe))


def with_current_names(state: State) -> State:
    return state


def with_earlier_names(state: State) -> State:
    """Return the tensors under their names in earlier versions of mmcv."""
    renamed = {}
    for name, value in state.items():
        for current, earlier in EARLIER_NAMES.items():
            name = name.replace(current, earlier)
        renamed[name] = value
    # Two decoder layers of eight tensors each, and the norm of the decoder.
    assert len(renamed.keys() - state.keys()) == 2 * 8 + 2
    return renamed


def with_length_before_width(state: State) -> State:
    """Return the tensors with the order of box sizes that mmdet3d has."""
    last_layers = {}
    for name, value in state.items():
        if ".reg_branches." in name and name.split(".")[-2] == "4":
            last_layers[name] = value[LENGTH_FIRST]
    return state | last_layers


def import_and_build(source: Path, *options: str) -> tuple[DetectionTransformer, dict[str, Any]]:
    """Import a checkpoint, and return the model of the new file and its metadata."""
    out = source.with_name("imported.safetensors")
    assert main(["import", str(source), "--out", str(out), *options]) == 0
    _, metadata = read(out)
    model = recipe_from_dict(metadata["recipe"]).build().eval()
    load_weights(model, out)
    return model, metadata


def assert_same_predictions(model: DetectionTransformer, expected: DetectionTransformer) -> None:
    """Assert that two models have the same predictions for random images."""
    num_frames = 2 if isinstance(expected.recipe, PETRv2) else 1
    images = petr.images(num_frames)
    images.pixels.normal_(generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        predictions, expected_predictions = model(images).final, expected(images).final
    assert torch.equal(predictions.logits, expected_predictions.logits)
    assert torch.equal(predictions.boxes, expected_predictions.boxes)


@pytest.mark.usefixtures("small_presets")
@pytest.mark.parametrize(
    "rename", [with_current_names, with_earlier_names], ids=["current names", "earlier names"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_imported_checkpoint_of_the_authors_has_the_same_predictions(
    kind: type[PETR],
    rename: Callable[[State], State],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = build_small(kind)
    source = write_checkpoint(tmp_path / "latest.pth", rename(petr_state(model)), MMCV)
    imported, metadata = import_and_build(source)
    assert_same_predictions(imported, model)
    assert type(imported.recipe) is kind
    assert (metadata["recipe"]["num_groups"], metadata["imgsz"]) == (3, 320)
    names = [name for _, name in metadata["categories"]]
    assert (names[0], names[9]) == ("car", "traffic_cone")
    output = capsys.readouterr().out
    assert "read as the authors' PETR" in output
    assert "groupdetr predict" in output


@pytest.mark.usefixtures("small_presets")
def test_a_checkpoint_of_mmdet3d_is_recognised_by_its_metadata(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_small(SmallPETR)
    state = with_length_before_width(petr_state(model))
    imported, _ = import_and_build(write_checkpoint(tmp_path / "petr.pth", state, MMENGINE))
    assert_same_predictions(imported, model)
    assert "read as mmdet3d's PETR" in capsys.readouterr().out


@pytest.mark.usefixtures("small_presets")
def test_a_checkpoint_without_metadata_needs_the_name_of_its_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_small(SmallPETR)
    source = write_checkpoint(tmp_path / "authors.pth", petr_state(model))
    out = tmp_path / "out.safetensors"
    assert main(["import", str(source), "--out", str(out)]) == WeightsError.exit_code
    assert '--layout "the authors\' PETR"' in capsys.readouterr().err
    assert not out.exists()
    imported, _ = import_and_build(source, "--layout", "the authors' PETR")
    assert_same_predictions(imported, model)

    state = with_length_before_width(petr_state(model))
    source = write_checkpoint(tmp_path / "mmdet3d.pth", state)
    imported, _ = import_and_build(source, "--layout", "mmdet3d's PETR")
    assert_same_predictions(imported, model)


@pytest.mark.usefixtures("small_presets")
def test_a_checkpoint_with_only_a_backbone_initialises_a_backbone_and_is_not_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published file also has two tensors of a head, without the rest of a detector."""
    state = {
        name: value
        for name, value in petr_state(build_small(SmallPETR)).items()
        if name.startswith("img_backbone.")
    }
    for branch in ("cls", "reg"):
        state[f"bbox_head.{branch}_convs.0.conv.weight"] = torch.zeros(1)
    source = write_checkpoint(tmp_path / "fcos3d_vovnet_imgbackbone-remapped.pth", state)
    backbone = create_model("petr-v99", pretrained_backbone=str(source)).backbone.network
    expected = build_small(SmallPETR).backbone.network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.state_dict().items())

    out = tmp_path / "out.safetensors"
    assert main(["import", str(source), "--out", str(out)]) == WeightsError.exit_code
    assert "--pretrained-backbone FILE" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", FULL_SIZE)
def test_an_imported_checkpoint_of_full_size_has_the_same_predictions(
    kind: type[PETR], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = kind(num_groups=2).build().eval()
    source = write_checkpoint(tmp_path / "latest.pth", petr_state(model), MMCV)
    imported, metadata = import_and_build(source)
    assert (metadata["recipe"]["num_groups"], metadata["recipe"]["num_queries"]) == (2, 900)
    assert_same_predictions(imported, model)
