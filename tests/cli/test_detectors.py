"""Every command works with every detector that trains on a CPU.

CI runs a detector for each mechanism that a run depends on: denoising with proposals of the
encoder, masks, which are compared at random points, and scenes of two frames.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from groupdetr.cli.main import main
from groupdetr.registry import experiment
from groupdetr.tasks.registry import task_class
from groupdetr.tasks.trained_detector import TrainedDetector
from tests.runs import (
    IMAGE_PRESETS,
    SMALL_MODEL,
    TINY_PRESETS,
    is_identical,
    load_checkpoint,
    losses_by_step,
    torchrun,
    train,
    train_arguments,
)

SHORT = ("--steps", "4", "--eval-every", "4")
IN_CI = ("dino-tiny", "mask2former-tiny", "petrv2-tiny")


def presets(names: list[str]) -> list[Any]:
    """Return parameters, of which CI runs those of `IN_CI`."""
    assert set(IN_CI) <= set(TINY_PRESETS)
    return [pytest.param(name, marks=() if name in IN_CI else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module", params=presets(TINY_PRESETS))
def name(request: pytest.FixtureRequest) -> str:
    """The name of a preset."""
    return request.param


@pytest.fixture(scope="module")
def data(name: str, data_for: Callable[[str], Path]) -> Path:
    """The dataset that the preset is trained on."""
    return data_for(name)


@pytest.fixture(scope="module")
def run(name: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the preset."""
    return train(data, tmp_path_factory.mktemp(name) / "run", "--model", name, *SHORT)


def test_a_stopped_training_resumes_bit_for_bit(
    name: str, run: Path, data: Path, tmp_path: Path
) -> None:
    """The random numbers of denoising and dropout depend on the step only."""
    resumed = train(data, tmp_path / "run", "--model", name, *SHORT, "--stop-after", "2")
    assert main(["train", "--resume", str(resumed)]) == 0
    assert is_identical(load_checkpoint(resumed), load_checkpoint(run))
    assert losses_by_step(resumed) == losses_by_step(run)


def test_val_has_the_metrics_of_the_primary_group(name: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "val"
    assert main(["val", str(run), "--per-group", "--workers", "0", "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    main_metric = task_class(experiment(name).task).metrics[0]
    assert metrics["per_group"][0][main_metric] == metrics[main_metric]


@pytest.mark.parametrize("name", presets(IMAGE_PRESETS), indirect=True)
def test_predict_writes_an_annotated_copy_of_every_image(
    run: Path, shapes: Path, tmp_path: Path
) -> None:
    images, out = shapes / "images/val", tmp_path / "out"
    assert main(["predict", str(run), str(images), "--score", "0", "--out", str(out)]) == 0
    assert len(list(out.glob("*.jpg"))) == 6


def test_weights_of_a_run_can_be_trained_on_and_imported(
    name: str, run: Path, data: Path, tmp_path: Path
) -> None:
    weights = str(run / "weights/best.safetensors")
    options = ("--model", name, "--weights", weights, "--steps", "1", "--groups", "3")
    train(data, tmp_path / "next", *options)
    one_group = tmp_path / "one_group.safetensors"
    assert main(["import", weights, "--groups", "1", "--out", str(one_group)]) == 0
    assert TrainedDetector(one_group).recipe.num_groups == 1


def test_doctor_finds_no_leak_between_groups(name: str, run: Path) -> None:
    assert main(["doctor", "--model", name]) == 0
    assert main(["doctor", "--model", str(run)]) == 0


def test_a_recipe_field_that_loaded_weights_change_is_kept_after_a_resume(
    shapes: Path, tmp_path: Path
) -> None:
    """The temperature is that of the loaded weights."""
    options = ("--steps", "1", *SMALL_MODEL, "temperature=20.0")
    first = train(shapes, tmp_path / "first", *options)
    weights = str(first / "weights/best.safetensors")
    options = ("--weights", weights, "--steps", "2", "--stop-after", "1")
    second = train(shapes, tmp_path / "second", *options)
    assert main(["train", "--resume", str(second)]) == 0
    recipe = asdict(TrainedDetector(second).recipe)
    assert recipe["temperature"] == 20.0


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_PRESETS)
def test_a_process_with_only_empty_images_does_not_hang(
    name: str, shapes: Path, tmp_path: Path
) -> None:
    """Of ten training images three have objects, and a process gets one image at a time."""
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    content["images"] = content["images"][:10]
    with_objects = {image["id"] for image in content["images"][:3]}
    content["annotations"] = [
        annotation
        for annotation in content["annotations"]
        if annotation["image_id"] in with_objects
    ]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(content))
    options = ["--model", name, "--images", str(shapes / "images/train"), "--no-check"]
    options += ["--steps", "8", "--batch", "2"]
    run = tmp_path / "run"
    process = torchrun(2, train_arguments(data, run, *options))
    assert process.returncode == 0, process.stderr
    assert len(losses_by_step(run)) == 8
