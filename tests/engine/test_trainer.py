"""The training loop: what changes nothing, how it ends, and what it writes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from shlex import split
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from groupdetr.cli.main import main
from groupdetr.engine.checkpoint import TrainingProgress
from groupdetr.engine.schedule import TrainingSchedule
from groupdetr.engine.step_results import StepResults
from groupdetr.engine.task import Batch
from groupdetr.engine.training_step import TrainingStep
from groupdetr.settings import Settings
from tests.runs import (
    grad_norms_by_step,
    load_checkpoint,
    losses_by_step,
    read_log,
    train,
    train_arguments,
)

# options that change memory or time, but not the result


def assert_same_losses(run: Path, expected_run: Path) -> None:
    """Assert that all losses of all steps are equal up to the order of sums."""
    losses = losses_by_step(run)
    for step, expected in losses_by_step(expected_run).items():
        assert losses[step] == pytest.approx(expected, rel=1e-4)


def test_micro_batches_have_the_losses_of_the_undivided_batch(shapes: Path, tmp_path: Path) -> None:
    undivided = train(shapes, tmp_path / "undivided", "--steps", "4")
    divided = train(shapes, tmp_path / "divided", "--steps", "4", "--accumulate", "2")
    assert_same_losses(divided, undivided)


def test_micro_batches_without_objects_have_the_losses_of_the_undivided_batch(
    few_objects: Path, tmp_path: Path
) -> None:
    """The number of objects that losses are divided by is clamped at one for the whole step."""
    options = ("--steps", "1", "--batch", "8")
    undivided = train(few_objects, tmp_path / "undivided", *options)
    divided = train(few_objects, tmp_path / "divided", *options, "--accumulate", "8")
    assert_same_losses(divided, undivided)
    assert grad_norms_by_step(divided) == pytest.approx(grad_norms_by_step(undivided), rel=1e-3)


def test_micro_batches_of_masks_have_the_losses_of_the_undivided_batch(
    shapes: Path, tmp_path: Path
) -> None:
    """With one query, most objects have none, and their number differs between micro-batches.

    On a CPU, micro-batches draw the same random points of masks as the undivided batch.
    """
    options = ("--model", "mask2former-tiny", "--queries", "1", "--set", "num_samples=64")
    options += ("--steps", "1", "--batch", "8")
    undivided = train(shapes, tmp_path / "undivided", *options)
    divided = train(shapes, tmp_path / "divided", *options, "--accumulate", "4")
    assert_same_losses(divided, undivided)


def test_the_number_of_loader_workers_changes_nothing(shapes: Path, tmp_path: Path) -> None:
    options = ("--steps", "4", "--augment", "detr")
    without_workers = train(shapes, tmp_path / "0", *options)
    with_workers = train(shapes, tmp_path / "2", *options, "--workers", "2")
    assert losses_by_step(without_workers) == losses_by_step(with_workers)


def test_chunked_groups_have_losses_and_gradients_of_all_groups_at_once(
    shapes: Path, tmp_path: Path
) -> None:
    """This also holds with micro-batches."""
    options = ("--model", "dn-detr-tiny", "--steps", "3", "--groups", "3", "--accumulate", "2")
    at_once = train(shapes, tmp_path / "at_once", *options)
    chunked = train(shapes, tmp_path / "chunked", *options, "--group-chunk", "2")
    assert_same_losses(chunked, at_once)
    assert grad_norms_by_step(chunked) == pytest.approx(grad_norms_by_step(at_once), rel=1e-4)


@pytest.mark.parametrize("model", ["table7/b", "table7/c"])
def test_chunks_of_dependent_groups_are_refused_before_the_data_are_read(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", model, "--group-chunk", "1")
    assert main(train_arguments(tmp_path / "no-data", tmp_path / "run", *options)) == 2
    assert "--group-chunk" in capsys.readouterr().err


def test_the_loss_in_bf16_is_close_to_that_in_fp32(shapes: Path, tmp_path: Path) -> None:
    fp32 = losses_by_step(train(shapes, tmp_path / "fp32", "--steps", "3"))
    bf16 = losses_by_step(train(shapes, tmp_path / "bf16", "--steps", "3", "--precision", "bf16"))
    assert sum(bf16[1].values()) == pytest.approx(sum(fp32[1].values()), rel=0.05)


# the end of a training


def test_a_loss_that_is_not_finite_ends_with_code_4_and_names_the_step_and_the_images(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = split("--steps 40 --lr 1e30 --backbone-lr 1e30 --warmup 0 --save-every 1")
    assert main(train_arguments(shapes, run, *options)) == 4
    error = capsys.readouterr().err
    assert "step" in error
    assert ".jpg" in error
    assert "last.pt" in error
    assert all(torch.isfinite(x).all() for x in load_checkpoint(run)["model"].values())


@pytest.mark.parametrize("saves", [False, True])
def test_on_a_gpu_the_check_of_a_step_comes_later_and_names_that_step_and_its_images(
    saves: bool,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It comes in the next step, or before the state is saved."""
    to_host = TrainingStep.to_host
    names: dict[int, list[str]] = {}  # of the images of every step
    run_step = TrainingStep.run

    def recorded(self: TrainingStep, network: nn.Module, micro_batches: list[Batch]) -> StepResults:
        indices = micro_batches[0].indices
        names[self.state.progress.step + 1] = self.plan.task.train_image_names(indices)
        return run_step(self, network, micro_batches)

    def late(self: TrainingStep, sums: dict[str, Tensor], grad_norm: Tensor) -> StepResults:
        if self.state.progress.step + 1 == 12:
            grad_norm = torch.full_like(grad_norm, torch.nan)
        return to_host(self, sums, grad_norm)

    monkeypatch.setattr(TrainingStep, "run", recorded)
    monkeypatch.setattr(TrainingStep, "to_host", late)
    monkeypatch.setattr(StepResults, "is_late", True)
    run = tmp_path / "run"
    options = split("--steps 14 --eval-every 100") + split("--save-every 1") * saves
    assert main(train_arguments(shapes, run, *options)) == 4
    error = capsys.readouterr().err
    assert "at step 12" in error
    assert ", ".join(names[12]) in " ".join(error.split())
    assert max(names) == (12 if saves else 13), "the step in which it is found"
    assert load_checkpoint(run)["progress"]["step"] == (11 if saves else 0)


def test_a_batch_may_be_larger_than_the_data_set(shapes: Path, tmp_path: Path) -> None:
    run = train(shapes, tmp_path / "run", "--epochs", "4", "--batch", "32", "--accumulate", "2")
    assert load_checkpoint(run)["progress"]["step"] == 3  # 4 epochs x 24 images / 32


def test_a_training_of_some_minutes_ends_in_time_with_an_evaluation(
    shapes: Path, tmp_path: Path
) -> None:
    log = read_log(train(shapes, tmp_path / "run", "--minutes", "0.1"))
    assert "AP" in log[-1]
    # Only the last step may end after six seconds, however long it takes.
    steps = [record["seconds"] for record in log if "losses" in record]
    assert all(seconds < 6 for seconds in steps[:-1])


def test_a_resumed_training_of_some_minutes_remembers_how_long_an_evaluation_takes() -> None:
    """Every part of it would begin with an evaluation, which may take longer than the part."""
    plan: Any = SimpleNamespace(
        settings=Settings(minutes=600, batch=4),
        task=SimpleNamespace(train=range(4)),
        total_steps=None,
    )
    before = TrainingProgress(step=1, images=4, seconds=1000)
    state: Any = SimpleNamespace(progress=before)
    TrainingSchedule(plan, state).end_evaluation(100)
    for seconds, is_due in ((2999, False), (3001, True)):
        saved = asdict(before) | {"step": 2, "images": 8, "seconds": seconds}
        resumed: Any = SimpleNamespace(progress=TrainingProgress(**saved))
        assert TrainingSchedule(plan, resumed).is_evaluation_due() is is_due


def test_early_stop_ends_a_training_whose_ap_no_longer_rises(shapes: Path, tmp_path: Path) -> None:
    options = split("--epochs 50 --lr 0 --backbone-lr 0 --early-stop 2")
    run = train(shapes, tmp_path / "run", *options)
    assert len([record for record in read_log(run) if "AP" in record]) <= 4


def test_the_folder_of_a_run_has_all_documented_files(shapes: Path, tmp_path: Path) -> None:
    run = train(shapes, tmp_path / "run", "--epochs", "2")
    names = "config.yaml env.json data.json log.jsonl results.csv val/metrics.json"
    for name in names.split():
        assert (run / name).stat().st_size > 0
    with (run / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1.0", "2.0"]
    assert (run / "weights/best.safetensors").is_file()
    assert not list((run / "weights").glob(".*")), "no unfinished files remain"


# the best weights


def write_without_objects(source: Path, folder: Path) -> Path:
    """Copy a dataset, and leave out the objects of its validation images."""
    shutil.copytree(source, folder)
    (file,) = folder.rglob("*val*.json")
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": []}))
    return folder


def test_with_an_undefined_ap_the_best_weights_are_those_of_the_last_evaluation(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_without_objects(shapes, tmp_path / "data")
    run = train(data, tmp_path / "run", "--epochs", "2")
    best = load_file(run / "weights/best.safetensors")
    last = load_checkpoint(run)["model"]
    assert all(torch.equal(value, last[name]) for name, value in best.items())
    assert {record["AP"] for record in read_log(run) if "AP" in record} == {None}
    output = capsys.readouterr().out
    assert "AP is undefined" in output
    assert "best AP" not in output


def test_of_equal_scores_the_later_evaluation_is_the_best(shapes: Path, tmp_path: Path) -> None:
    """With a rate of 0 the score stays the same. The metrics of the weights tell the step."""
    run = train(shapes, tmp_path / "run", *split("--epochs 2 --lr 0 --backbone-lr 0"))
    scores = [record["AP"] for record in read_log(run) if "AP" in record]
    assert scores[0] == scores[1]
    assert json.loads((run / "weights/best.json").read_text())["step"] == 12


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
def test_all_files_of_a_run_have_the_mode_of_the_umask(shapes: Path, tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        run = train(shapes, tmp_path / "run", "--steps", "1")
    finally:
        os.umask(former)
    modes = {file.name: file.stat().st_mode & 0o777 for file in run.rglob("*") if file.is_file()}
    assert modes["best.safetensors"] == 0o640
    assert set(modes.values()) == {0o640}, modes
