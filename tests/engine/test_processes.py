"""Training in several processes gives the same losses and gradients as in one."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import split

import pytest
import torch

from groupdetr.structures.masks import MaskFeatures
from tests.runs import (
    evaluations,
    grad_norms_by_step,
    losses_by_step,
    torchrun,
    train,
    train_arguments,
)

# Two processes run several trainings, one after the other: starting them takes most of the time.
# Masks are compared at the same points of every image. The random points of a training are others
# in every process, as the numbers of dropout are.
PROGRAM = """
import gc
import json
import sys
from pathlib import Path

import torch
from groupdetr.cli.main import main
from groupdetr.engine.accelerator import disconnect
from groupdetr.structures.masks import MaskFeatures

with_random_points = MaskFeatures.with_points


def with_equal_points(features, count, generator=None, padding_mode="zeros"):
    return with_random_points(features, count, torch.Generator().manual_seed(0), padding_mode)


MaskFeatures.with_points = with_equal_points
for arguments in json.loads(sys.argv[1]):
    assert main(arguments) == 0

# As at the end of every program: a process that ends with gloo's threads may be aborted by them.
gc.collect()
disconnect()
threads = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
"""
OPTIONS = {
    "plain": split("--steps 6 --eval-every 0.5"),
    "three groups": split("--steps 4 --groups 3"),
    "few objects": split("--steps 1 --batch 8"),
    "masks": split("--model mask2former-tiny --steps 2 --set num_samples=64"),
}
IN_PROCESSES = {
    "three groups": split("--group-chunk 2 --accumulate 2"),
    "few objects": split("--accumulate 2"),
}


@pytest.fixture(scope="module")
def data(shapes: Path, few_objects: Path) -> dict[str, Path]:
    """The dataset of every training."""
    return {**dict.fromkeys(OPTIONS, shapes), "few objects": few_objects}


@pytest.fixture(scope="module")
def two_processes(
    data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The folder of the trainings in two processes, and what they have printed."""
    folder = tmp_path_factory.mktemp("two")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    trainings = []
    for name, options in OPTIONS.items():
        options = [*options, *IN_PROCESSES.get(name, []), "--json"]
        trainings.append(train_arguments(data[name], folder / name, *options))
    process = torchrun(2, [json.dumps(trainings)], [str(program)])
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


def one_and_two_processes(
    name: str, data: dict[str, Path], two_processes: tuple[Path, str], tmp_path: Path
) -> tuple[Path, Path]:
    """Run a training in this process; return its folder and that of the two processes."""
    return train(data[name], tmp_path / "one", *OPTIONS[name]), two_processes[0] / name


def test_two_processes_log_the_losses_of_one_process_with_the_same_batch(
    data: dict[str, Path], two_processes: tuple[Path, str], tmp_path: Path
) -> None:
    one, two = one_and_two_processes("plain", data, two_processes, tmp_path)
    for step, expected in losses_by_step(one).items():
        assert losses_by_step(two)[step] == pytest.approx(expected, rel=1e-4)
    instability_of_one = [record["instability_groups"] for record in evaluations(one)]
    instability_of_two = [record["instability_groups"] for record in evaluations(two)]
    assert instability_of_two == instability_of_one


def test_only_one_of_two_processes_prints_json(two_processes: tuple[Path, str]) -> None:
    printed = two_processes[1].replace("}\n{", "},{")
    assert [result["steps"] for result in json.loads(f"[{printed}]")] == [6, 4, 1, 2]


def test_two_processes_with_chunked_groups_take_the_steps_of_one_with_all_groups_at_once(
    data: dict[str, Path], two_processes: tuple[Path, str], tmp_path: Path
) -> None:
    """This also holds with micro-batches."""
    one, two = one_and_two_processes("three groups", data, two_processes, tmp_path)
    for step, expected in losses_by_step(one).items():
        assert losses_by_step(two)[step] == pytest.approx(expected, rel=1e-4)
    assert grad_norms_by_step(two) == pytest.approx(grad_norms_by_step(one), rel=1e-4)


def test_two_processes_of_which_one_has_no_object_take_the_step_of_one_process(
    data: dict[str, Path], two_processes: tuple[Path, str], tmp_path: Path
) -> None:
    """The clamp at one object belongs to the whole step, unlike in published code.

    There, the loss of this step would be half as large in two processes.
    """
    one, two = one_and_two_processes("few objects", data, two_processes, tmp_path)
    assert losses_by_step(two)[1] == pytest.approx(losses_by_step(one)[1], rel=1e-4)
    assert grad_norms_by_step(two) == pytest.approx(grad_norms_by_step(one), rel=1e-3)


def test_two_processes_take_the_steps_of_one_process_with_masks_at_equal_points(
    data: dict[str, Path],
    two_processes: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_random_points = MaskFeatures.with_points

    def with_equal_points(
        features: MaskFeatures, count: int, _generator: object = None, padding_mode: str = "zeros"
    ) -> MaskFeatures:
        generator = torch.Generator().manual_seed(0)
        return with_random_points(features, count, generator, padding_mode)

    monkeypatch.setattr(MaskFeatures, "with_points", with_equal_points)
    one, two = one_and_two_processes("masks", data, two_processes, tmp_path)
    for step, expected in losses_by_step(one).items():
        assert losses_by_step(two)[step] == pytest.approx(expected, rel=1e-4)
    assert grad_norms_by_step(two) == pytest.approx(grad_norms_by_step(one), rel=1e-4)
