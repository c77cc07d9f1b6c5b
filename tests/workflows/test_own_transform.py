"""A training with a transform of the user is recorded, and resumed with the same one only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

import groupdetr
from groupdetr.cli.main import main
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import UsageError

pytestmark = pytest.mark.usefixtures("empty_pages")

SMALL: dict[str, Any] = {
    "set": {"channels": 32, "num_heads": 2, "decoder_layers": 1, "num_queries": 6},
    "groups": 2,
    "imgsz": 48,
    "batch": 4,
    "workers": 0,
    "device": "cpu",
    "instability_images": 0,
}


def rotation() -> v2.Compose:
    return v2.Compose([v2.RandomRotation(20), v2.ColorJitter(0.4)])


def test_a_run_is_resumed_exactly_with_its_transform_and_with_no_other_one(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(out: str, **options: Any) -> groupdetr.TrainingResult:
        model = {"model": "conditional-detr-tiny"} | SMALL
        return groupdetr.train(shapes, out=tmp_path / out, steps=4, **model, **options)

    whole = train("whole", transform=rotation())
    plain = train("plain")
    stopped = train("stopped", transform=rotation(), stop_after=2)
    assert "RandomRotation" in RunFolder(stopped.path).read_config()["transform"]
    assert RunFolder(plain.path).read_config()["transform"] is None

    for other in ({}, {"transform": v2.RandomRotation(30)}):
        with pytest.raises(UsageError, match="this run was trained with") as refused:
            groupdetr.train(resume=stopped.path, **other)
        assert "RandomRotation" in refused.value.where
        assert "groupdetr.train(resume=" in refused.value.remedy
    assert main(["train", "--resume", str(stopped.path)]) == 2
    assert "resume it in Python" in capsys.readouterr().err
    with pytest.raises(UsageError, match="without a transform"):
        groupdetr.train(resume=plain.path, transform=rotation())

    resumed = groupdetr.train(resume=stopped.path, transform=rotation())
    weights = [groupdetr.Detector(run.path, "cpu").model.state_dict() for run in (whole, resumed)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    different = groupdetr.Detector(plain.path, "cpu").model.state_dict()
    assert any(not torch.equal(value, different[name]) for name, value in weights[0].items())


def test_a_transform_is_refused_for_scenes_and_if_it_is_no_module(
    shapes: Path, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not a module"):
        groupdetr.train(shapes, transform=str)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a transform is for images"):
        groupdetr.train(
            scenes, model="petr-tiny", transform=rotation(), out=tmp_path, device="cpu", steps=1
        )


def test_the_sheet_shows_the_transform(shapes: Path, scenes: Path) -> None:
    options: dict[str, Any] = {"augment": "none", "imgsz": 48, "count": 2}
    plain = np.asarray(groupdetr.draw_augmentation(shapes, **options))
    inverted = groupdetr.draw_augmentation(shapes, transform=v2.RandomInvert(1), **options)
    changed = np.asarray(inverted)
    assert plain.shape == changed.shape == (8 + 2 * 328, 8 + 4 * 328, 3)
    np.testing.assert_array_equal(plain[:, :328], changed[:, :328])  # as in validation
    assert np.abs(plain[8:328, 400:640].astype(int) - changed[8:328, 400:640]).mean() > 50
    with pytest.raises(UsageError, match="these are scenes"):
        groupdetr.draw_augmentation(scenes)
