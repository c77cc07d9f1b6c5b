"""Every verb works with every detector that trains on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from groupdetr.cli.main import main
from groupdetr.experiments import experiment
from groupdetr.tasks.detection2d.prediction import Trained
from tests.runs import (
    OF_PICTURES,
    SMALL,
    TINY,
    arguments,
    checkpoint,
    losses,
    same,
    torchrun,
    train,
)

SHORT = ("--steps", "8", "--eval-every", "0.5")


@pytest.fixture(scope="module", params=TINY)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def data(name: str, data_for: Callable[[str], Path]) -> Path:
    return data_for(name)


@pytest.fixture(scope="module")
def run(name: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(data, tmp_path_factory.mktemp(name) / "run", "--model", name, *SHORT)


def test_a_stopped_training_goes_on_bit_for_bit(
    name: str, run: Path, data: Path, tmp_path: Path
) -> None:
    """Denoising draws anew at every step, as dropout does, and from the step alone."""
    again = train(data, tmp_path / "run", "--model", name, *SHORT, "--stop-after", "5")
    assert main(["train", "--resume", str(again)]) == 0
    assert same(checkpoint(again), checkpoint(run))
    assert losses(again) == losses(run)


def test_val_answers(name: str, run: Path, tmp_path: Path) -> None:
    assert (
        main(["val", str(run), "--per-group", "--workers", "0", "--out", str(tmp_path / "val")])
        == 0
    )
    figures = json.loads((tmp_path / "val/metrics.json").read_text())
    deciding = experiment(name).task.figures[0]
    assert (
        figures["per_group"][0][deciding] == figures[deciding]
    )  # the primary group is the one that answers


@pytest.mark.parametrize("name", OF_PICTURES, indirect=True)
def test_predict_answers(run: Path, shapes: Path, tmp_path: Path) -> None:
    pictures = str(shapes / "images/val")
    assert (
        main(["predict", str(run), pictures, "--score", "0", "--out", str(tmp_path / "out")]) == 0
    )
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 6


def test_its_weights_start_another_training_and_are_imported(
    name: str, run: Path, data: Path, tmp_path: Path
) -> None:
    best = str(run / "weights/best.safetensors")
    train(
        data, tmp_path / "next", "--model", name, "--weights", best, "--steps", "1", "--groups", "3"
    )
    assert main(["import", best, "--groups", "1", "--out", str(tmp_path / "one.safetensors")]) == 0
    assert Trained(tmp_path / "one.safetensors").recipe.num_groups == 1


def test_the_doctor_finds_its_groups_apart(name: str, run: Path) -> None:
    assert main(["doctor", "--model", name]) == 0
    assert main(["doctor", "--model", str(run)]) == 0


def test_the_doctor_finds_groups_that_leak() -> None:
    assert main(["doctor", "--model", "table7/c-tiny"]) == 1


@pytest.mark.parametrize(
    "name", [name for name in TINY if hasattr(experiment(name).recipe, "temperature")]
)
def test_what_loaded_weights_change_of_the_recipe_outlives_a_stop(
    name: str, shapes: Path, tmp_path: Path
) -> None:
    """The temperature is that of the weights, in the run's own weights and after a resumption."""
    first = train(
        shapes, tmp_path / "first", "--model", name, "--steps", "1", *SMALL, "temperature=20.0"
    )
    weights = str(first / "weights/best.safetensors")
    second = train(
        shapes,
        tmp_path / "second",
        "--model",
        name,
        "--weights",
        weights,
        "--steps",
        "3",
        "--stop-after",
        "1",
    )
    assert main(["train", "--resume", str(second)]) == 0
    assert Trained(second).recipe.temperature == 20.0  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_PICTURES)
def test_a_process_with_only_empty_images_does_not_hang(
    name: str, shapes: Path, tmp_path: Path
) -> None:
    """Of eight training pictures three have objects, and a process gets one of them at a time."""
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    content["images"] = content["images"][:10]
    shown = {image["id"] for image in content["images"][:3]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in shown]
    (tmp_path / "few.json").write_text(json.dumps(content))
    options = (
        "--images",
        str(shapes / "images/train"),
        "--steps",
        "8",
        "--batch",
        "2",
        "--no-check",
    )
    run = tmp_path / "run"
    done = torchrun(2, 29620, arguments(tmp_path / "few.json", run, "--model", name, *options))
    assert done.returncode == 0, done.stderr
    assert len(losses(run)) == 8
