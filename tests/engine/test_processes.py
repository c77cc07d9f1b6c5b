"""Several processes train as one would."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import arguments, evaluations, losses, norms, torchrun, train


def test_two_processes_give_the_curves_of_one_with_the_whole_batch(
    shapes: Path, tmp_path: Path
) -> None:
    options = ("--steps", "6", "--eval-every", "0.5")
    one = train(shapes, tmp_path / "one", *options)
    two = tmp_path / "two"
    done = torchrun(2, 29611, arguments(shapes, two, *options))
    assert done.returncode == 0, done.stderr
    for step, expected in losses(one).items():
        assert losses(two)[step] == pytest.approx(expected, rel=1e-4)
    assert [row["instability_groups"] for row in evaluations(two)] == [
        row["instability_groups"] for row in evaluations(one)
    ]


@pytest.mark.parametrize("pieces", ["1", "2"])
def test_two_processes_with_groups_in_chunks_take_the_steps_of_one_with_all_at_once(
    shapes: Path, tmp_path: Path, pieces: str
) -> None:
    options = ("--steps", "4", "--groups", "3")
    one, two = train(shapes, tmp_path / "one", *options), tmp_path / "two"
    chunked = arguments(shapes, two, *options, "--group-chunk", "2", "--accumulate", pieces)
    done = torchrun(2, 29612 + int(pieces), chunked)
    assert done.returncode == 0, done.stderr
    for step, expected in losses(one).items():
        assert losses(two)[step] == pytest.approx(expected, rel=1e-4)
    assert norms(two) == pytest.approx(norms(one), rel=1e-4)
