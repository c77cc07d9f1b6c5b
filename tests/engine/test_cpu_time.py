"""The CPU time of a training, by which trainings are compared at equal time."""

from __future__ import annotations

from pathlib import Path

from groupdetr.cli.main import main
from groupdetr.engine.run_folder import RunFolder
from tests.runs import train


def test_the_log_has_the_cpu_time_of_training_which_adds_up_over_resumes(
    shapes: Path, tmp_path: Path
) -> None:
    run = RunFolder(train(shapes, tmp_path / "run", "--steps", "6", "--stop-after", "3"))
    before = run.records()[-1]["cpu_seconds"]
    assert before > 0
    assert main(["train", "--resume", str(run.path), "--stop-after", "6"]) == 0
    steps = [record["cpu_seconds"] for record in run.records() if "loss" in record]
    assert len(steps) == 6
    assert steps == sorted(steps)
    assert steps[2] == before < steps[3]
    (evaluation,) = run.evaluations()
    assert evaluation["cpu_seconds"] == steps[-1], "an evaluation is no training"
