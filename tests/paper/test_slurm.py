"""Trainings as jobs: submitit's local executor stands in for Slurm."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from groupdetr.errors import UsageError
from groupdetr.paper.slurm import parse_parameters, read_jobs, submit_all
from groupdetr.paper.trainings import Store, StoredTraining

from .stored import training

pytest.importorskip("submitit")
LOCAL = ("cluster=local",)


def wait_for(file: Path) -> None:
    last_time = time.monotonic() + 600
    while not file.exists():
        assert time.monotonic() < last_time, f"{file} was not written"
        time.sleep(0.05)


def test_a_job_runs_the_command_of_its_training_and_is_not_submitted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command stands for a training: it writes a file when it has begun, and waits."""
    begun, go_on = tmp_path / "begun", tmp_path / "go_on"
    program = (
        "import pathlib, time\n"
        f"pathlib.Path({str(begun)!r}).write_text('')\n"
        f"while not pathlib.Path({str(go_on)!r}).exists():\n    time.sleep(0.05)\n"
    )
    # `python -m timeit` runs a program that is an argument.
    command = ["timeit", "-n", "1", "-r", "1", program]
    monkeypatch.setattr(StoredTraining, "command", lambda _: command)
    store = Store(tmp_path)
    run = store.run(training(tmp_path))
    assert submit_all([run], LOCAL, store) == [run]
    wait_for(begun)
    assert submit_all([run], LOCAL, store) == [], "it runs already"
    number = read_jobs(tmp_path / "slurm/jobs.json")[run.training.name]["job"]
    go_on.write_text("")
    wait_for(tmp_path / f"slurm/{number}_0_result.pkl")
    # A job that has ended before its training was done, for example at its time limit, goes on.
    assert submit_all([run], LOCAL, store) == [run]
    number = read_jobs(tmp_path / "slurm/jobs.json")[run.training.name]["job"]
    wait_for(tmp_path / f"slurm/{number}_0_result.pkl")


def test_parameters_of_jobs_are_values_of_yaml() -> None:
    assert parse_parameters(["partition=gpu", "gpus_per_node=8"]) == {
        "partition": "gpu",
        "gpus_per_node": 8,
    }
    with pytest.raises(UsageError, match="name=value"):
        parse_parameters(["gpu"])


def test_a_machine_without_slurm_and_unknown_parameters_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    store = Store(tmp_path)
    run = store.run(training(tmp_path))
    with pytest.raises(UsageError, match="no Slurm"):
        submit_all([run], (), store)
    with pytest.raises(UsageError, match="does not take these parameters"):
        submit_all([run], (*LOCAL, "colour=red"), store)
