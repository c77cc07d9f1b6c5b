"""Checkpoints of DAB-DETR and DN-DETR as their authors save them."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.native import read, unique_state
from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.detectors.dn_detr import DNDETR
from groupdetr.detectors.tiny import TinyDABDETR, TinyDNDETR
from groupdetr.errors import WeightsError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.registry import recipe_from_dict
from groupdetr.structures.images import Images
from groupdetr.weights.coco_names import COCO_91
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights
from groupdetr.weights.official_dab_detr import OFFICIAL_DAB, OFFICIAL_DN

from .conftest import SIZES, dab_state

DAB = TinyDABDETR(num_classes=5, num_groups=3, num_queries=4, temperature=20.0, **SIZES)
DN = TinyDNDETR(num_classes=5, num_groups=3, num_queries=4, temperature=20.0, **SIZES)
ARGS = {
    "nheads": 2,
    "dropout": 0.0,
    "dilation": False,
    "dataset_file": "coco",
    "pe_temperatureH": 20,
    "pe_temperatureW": 20,
}
DN_ARGS = {**ARGS, "use_dn": True, "scalar": 5, "label_noise_scale": 0.1, "box_noise_scale": 0.3}


@pytest.fixture(
    params=[DAB, replace(DAB, num_patterns=2), DN, replace(DN, num_patterns=2)],
    ids=["dab", "dab-2", "dn", "dn-2"],
)
def model(request: pytest.FixtureRequest) -> DetectionTransformer:
    torch.manual_seed(0)
    return request.param.build()


def write(path: Path, state: dict[str, Tensor], **others: object) -> Path:
    args = Namespace(
        **{**(DN_ARGS if "label_enc.weight" in state else ARGS), "num_queries": 4, **others}
    )
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 49, "args": args}, path)
    return path


def same(a: DetectionTransformer, b: DetectionTransformer) -> bool:
    ours, theirs = unique_state(a), unique_state(b)
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def test_their_checkpoint_fills_the_model(model: DetectionTransformer, tmp_path: Path) -> None:
    """It may have K*N rows of anchors, although their code has no groups."""
    torch.manual_seed(1)
    loaded = model.recipe.build()
    assert not same(loaded, model)
    report = load_weights(loaded, write(tmp_path / "checkpoint.pth", dab_state(model)))
    assert same(loaded, model)
    detector = "DN-DETR" if isinstance(model.recipe, DNDETR) else "DAB-DETR"
    assert f"read as the authors' {detector}" in report.lines[0]
    assert len(report.lines) == 1


@pytest.mark.parametrize(
    ("recipe", "layout", "count"), [(DABDETR(), OFFICIAL_DAB, 590), (DNDETR(), OFFICIAL_DN, 591)]
)
def test_their_tensors_are_exactly_ours(recipe: DABDETR, layout: object, count: int) -> None:
    small = replace(recipe, num_queries=3, channels=16, num_heads=2, dim_feedforward=16)
    model = small.build()
    theirs = dab_state(model)
    assert len(theirs) == count
    assert layout.convert(Checkpoint(theirs, {}, "test")).state.keys() == unique_state(model).keys()  # type: ignore[attr-defined]


@pytest.mark.parametrize("groups", [1, 5])
def test_groups_are_fitted_and_group_0_predicts_the_same(
    groups: int, model: DetectionTransformer, tmp_path: Path
) -> None:
    other = replace(model.recipe, num_groups=groups).build()
    load_weights(other, write(tmp_path / "checkpoint.pth", dab_state(model)))
    images = Images.from_list([torch.randn(3, 64, 48)])
    with torch.no_grad():
        assert torch.equal(other.eval()(images).final.boxes, model.eval()(images).final.boxes)


def test_the_temperature_of_the_file_is_used(tmp_path: Path) -> None:
    """Published weights of one detector differ in the temperature, and no tensor shows it."""
    model, loaded = DAB.build(), replace(DAB, temperature=10.0).build()
    report = load_weights(loaded, write(tmp_path / "checkpoint.pth", dab_state(model)))
    assert "temperature: 20 in the file, 10 in the model: set to 20" in report.lines
    assert report.recipe_changes == {"temperature": 20.0}
    assert loaded.recipe == replace(DAB, temperature=20.0)
    images = Images.from_list([torch.randn(3, 64, 48)])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images).final.boxes, model.eval()(images).final.boxes)


def test_a_difference_that_the_model_keeps_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoint.pth", dab_state(DAB.build()), nheads=4)
    model = DAB.build()
    report = load_weights(model, path)
    assert report.lines[-1].startswith("num_heads: 4 in the file, 2 in the model: the predictions")
    assert report.recipe_changes == {}
    assert model.recipe == DAB


def test_two_temperatures_that_differ_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoint.pth", dab_state(DAB.build()), pe_temperatureW=10)
    with pytest.raises(
        WeightsError, match=r"height \(20\) and another for width \(10\)"
    ) as refused:
        load_weights(DAB.build(), path)
    assert refused.value.where == str(path)


def test_labels_follow_the_classes_by_name(tmp_path: Path) -> None:
    """The label embedding of a class goes to the same row as its class head.

    That for "no object" remains the last.
    """
    coco, mine = replace(DN, num_classes=91).build(), replace(DN, num_classes=3).build()
    path = write(tmp_path / "coco.pth", dab_state(coco))
    with pytest.raises(WeightsError, match="91 classes in the file, 3 in the model"):
        load_weights(mine, path)
    load_weights(mine, path, new_head=True, class_names=["zebra", "drone", "person"])
    ours, theirs = mine.queries.labels.weight, coco.queries.labels.weight
    for row, old in ((0, COCO_91.index("zebra")), (2, COCO_91.index("person")), (3, 91)):
        assert torch.equal(ours[row], theirs[old])
    assert not any(torch.equal(ours[1], row) for row in theirs)


@pytest.mark.parametrize(
    ("recipe", "dilation"),
    [(DABDETR(), False), (DABDETR(num_patterns=3), True), (DNDETR(), True)],
    ids=["dab", "dab-3-dc5", "dn-dc5"],
)
def test_an_import_reads_the_recipe_from_the_file(
    recipe: DABDETR, dilation: bool, tmp_path: Path
) -> None:
    small = replace(
        recipe,
        num_queries=3,
        channels=16,
        num_heads=2,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
    )
    path = write(
        tmp_path / "checkpoint.pth", dab_state(small.build()), dilation=dilation, num_queries=3
    )
    import_weights(path, tmp_path / "out.safetensors")
    recipe_of_import = recipe_from_dict(read(tmp_path / "out.safetensors")[1]["recipe"])
    family = "dn-detr" if isinstance(recipe, DNDETR) else "dab-detr"
    noise = (
        {"denoising_groups": 5, "label_noise_ratio": 0.1, "box_noise_scale": 0.3}
        if family == "dn-detr"
        else {}
    )
    preset = f"{family}-r50" + "-dc5" * dilation
    assert recipe_of_import == small.with_options(
        preset=preset, dilated=dilation, temperature=20.0, **noise
    )
