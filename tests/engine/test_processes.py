"""Training in several processes gives the same losses and gradients as in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import (
    evaluations,
    grad_norms_by_step,
    losses_by_step,
    torchrun,
    train,
    train_arguments,
)


def test_two_processes_log_the_losses_of_one_process_with_the_same_batch(
    shapes: Path, tmp_path: Path
) -> None:
    options = ("--steps", "6", "--eval-every", "0.5")
    one = train(shapes, tmp_path / "one", *options)
    two = tmp_path / "two"
    process = torchrun(2, train_arguments(shapes, two, *options, "--json"))
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["steps"] == 6, "only one of the processes prints JSON"
    for step, expected in losses_by_step(one).items():
        assert losses_by_step(two)[step] == pytest.approx(expected, rel=1e-4)
    instability_of_one = [record["instability_groups"] for record in evaluations(one)]
    instability_of_two = [record["instability_groups"] for record in evaluations(two)]
    assert instability_of_two == instability_of_one


@pytest.mark.parametrize("micro_batches", ["1", "2"])
def test_two_processes_with_chunked_groups_take_the_steps_of_one_with_all_groups_at_once(
    shapes: Path, tmp_path: Path, micro_batches: str
) -> None:
    options = ("--steps", "4", "--groups", "3")
    one = train(shapes, tmp_path / "one", *options)
    two = tmp_path / "two"
    in_chunks = ("--group-chunk", "2", "--accumulate", micro_batches)
    process = torchrun(2, train_arguments(shapes, two, *options, *in_chunks))
    assert process.returncode == 0, process.stderr
    for step, expected in losses_by_step(one).items():
        assert losses_by_step(two)[step] == pytest.approx(expected, rel=1e-4)
    assert grad_norms_by_step(two) == pytest.approx(grad_norms_by_step(one), rel=1e-4)


def test_two_processes_of_which_one_has_no_object_take_the_step_of_one_process(
    few_objects: Path, tmp_path: Path
) -> None:
    """The clamp at one object belongs to the whole step, unlike in published code.

    There, the loss of this step would be half as large in two processes.
    """
    options = ("--steps", "1", "--batch", "8")
    one = train(few_objects, tmp_path / "one", *options)
    two = tmp_path / "two"
    arguments = train_arguments(few_objects, two, *options, "--accumulate", "2")
    process = torchrun(2, arguments)
    assert process.returncode == 0, process.stderr
    assert losses_by_step(two)[1] == pytest.approx(losses_by_step(one)[1], rel=1e-4)
    assert grad_norms_by_step(two) == pytest.approx(grad_norms_by_step(one), rel=1e-3)
