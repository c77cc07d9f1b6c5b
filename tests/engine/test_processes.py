"""Several processes train as one would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import arguments, evaluations, losses, torchrun, train


def test_two_processes_give_the_curves_of_one_with_the_whole_batch(shapes: Path, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_a_process_with_only_empty_images_does_not_hang(shapes: Path, tmp_path: Path) -> None:
    """Of ten pictures three have objects, and a process gets one of them at a time. Two are held out for val."""
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    content["images"] = content["images"][:10]
    shown = {image["id"] for image in content["images"][:3]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in shown]
    (tmp_path / "few.json").write_text(json.dumps(content))
    options = ("--images", str(shapes / "images/train"), "--steps", "8", "--batch", "2", "--no-check")
    done = torchrun(2, 29612, arguments(tmp_path / "few.json", tmp_path / "run", *options))
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "run")) == 8
