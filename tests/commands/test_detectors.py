"""Every verb works with every detector that trains on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from groupdetr import Detector
from groupdetr.cli import main
from groupdetr.experiments import EXPERIMENTS
from tests.runs import SMALL, arguments, checkpoint, losses, same, torchrun, train

TINY = [name for name in EXPERIMENTS if name.endswith("-tiny") and "/" not in name and "petr" not in name]
SHORT = ("--steps", "8", "--eval-every", "0.5")


@pytest.fixture(scope="module", params=TINY)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def run(name: str, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(shapes, tmp_path_factory.mktemp(name) / "run", "--model", name, *SHORT)


def test_a_stopped_training_goes_on_bit_for_bit(name: str, run: Path, shapes: Path, tmp_path: Path) -> None:
    """Denoising draws anew at every step, as dropout does, and from the step alone."""
    again = train(shapes, tmp_path / "run", "--model", name, *SHORT, "--stop-after", "5")
    assert main(["train", "--resume", str(again)]) == 0
    assert same(checkpoint(again), checkpoint(run))
    assert losses(again) == losses(run)


def test_val_and_predict_answer(run: Path, shapes: Path, tmp_path: Path) -> None:
    assert main(["val", str(run), "--per-group", "--workers", "0", "--out", str(tmp_path / "val")]) == 0
    figures = json.loads((tmp_path / "val/metrics.json").read_text())
    assert figures["per_group"][0]["AP"] == figures["AP"]  # the primary group is the one that answers
    pictures = str(shapes / "images/val")
    assert main(["predict", str(run), pictures, "--score", "0", "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 6


def test_its_weights_start_another_training_and_are_imported(
    name: str, run: Path, shapes: Path, tmp_path: Path
) -> None:
    best = str(run / "weights/best.safetensors")
    train(shapes, tmp_path / "next", "--model", name, "--weights", best, "--steps", "1", "--groups", "3")
    assert main(["import", best, "--groups", "1", "--out", str(tmp_path / "one.safetensors")]) == 0
    assert Detector(tmp_path / "one.safetensors").recipe.num_groups == 1


def test_the_doctor_finds_its_groups_apart(name: str, run: Path) -> None:
    assert main(["doctor", "--model", name]) == 0
    assert main(["doctor", "--model", str(run)]) == 0


def test_the_doctor_finds_groups_that_leak() -> None:
    assert main(["doctor", "--model", "table7/c-tiny"]) == 1


@pytest.mark.parametrize("name", [name for name in TINY if name != "conditional-detr-tiny"])
def test_what_loaded_weights_change_of_the_recipe_outlives_a_stop(name: str, shapes: Path, tmp_path: Path) -> None:
    """The temperature is that of the weights, in the run's own weights and after a resumption."""
    first = train(shapes, tmp_path / "first", "--model", name, "--steps", "1", *SMALL, "temperature=20.0")
    weights = str(first / "weights/best.safetensors")
    second = train(
        shapes, tmp_path / "second", "--model", name, "--weights", weights, "--steps", "3", "--stop-after", "1"
    )
    assert main(["train", "--resume", str(second)]) == 0
    assert Detector(second).recipe.temperature == 20.0  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_process_with_only_empty_images_does_not_hang(name: str, shapes: Path, tmp_path: Path) -> None:
    """Of eight training pictures three have objects, and a process gets one of them at a time."""
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    content["images"] = content["images"][:10]
    shown = {image["id"] for image in content["images"][:3]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in shown]
    (tmp_path / "few.json").write_text(json.dumps(content))
    options = ("--images", str(shapes / "images/train"), "--steps", "8", "--batch", "2", "--no-check")
    run = tmp_path / "run"
    done = torchrun(2, 29620, arguments(tmp_path / "few.json", run, "--model", name, *options))
    assert done.returncode == 0, done.stderr
    assert len(losses(run)) == 8
