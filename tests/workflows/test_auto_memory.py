"""`auto` chooses for the memory how much of a step is computed at once, and nothing else."""

from __future__ import annotations

import functools
import gc
import math
import re
import shlex
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from groupdetr import Detector
from groupdetr.cli.main import main
from groupdetr.data.worst_case import WorstCaseImageBatch
from groupdetr.engine.accelerator import create_accelerator
from groupdetr.engine.memory import HostMeter
from groupdetr.engine.trainer import Trainer
from groupdetr.registry import experiment
from groupdetr.settings import Settings
from groupdetr.workflows import auto_memory
from groupdetr.workflows import train as train_workflow
from groupdetr.workflows.auto_memory import FitProblem, MemoryProbe, PlanSearch, StepPlan
from groupdetr.workflows.detector_plan import DetectorPlan
from tests.runs import (
    IMAGE_PRESETS,
    SMALL_MODEL,
    SMALL_SETTINGS,
    TINY_PRESETS,
    is_identical,
    load_checkpoint,
    losses_by_step,
    torchrun,
    train,
    train_arguments,
)

pytestmark = pytest.mark.usefixtures("empty_pages")

MIB = 1 << 20
UNLIMITED = 1 << 40
DataFor = Callable[[str], Path]  # a preset -> its dataset
WORST_CASE = WorstCaseImageBatch(single_size=(50, 40), batch_size=(50, 50), objects=3)
AUTO = ("--groups", "auto", "--batch", "auto")


def fit_problem(
    name: str = "conditional-detr-tiny", processes: int = 1, **settings: Any
) -> FitProblem:
    """Return the problem of a preset with a batch of eight images."""
    recipe = experiment(name).recipe
    return FitProblem(recipe, Settings(**{"batch": 8, **settings}), WORST_CASE, processes)


@functools.cache
def all_step_plans() -> list[StepPlan]:
    """Return the step plans of Conditional DETR with six groups."""
    return fit_problem().step_plans(may_reduce_groups=False)


def read_config(run: Path) -> dict[str, Any]:
    """Return the content of config.yaml."""
    return yaml.safe_load((run / "config.yaml").read_text())


def fitted_flags(run: Path) -> list[str]:
    """Return the options of `groupdetr train` that choose what was fitted for a run."""
    config = read_config(run)
    settings = config["settings"]
    values = {
        "--groups": config["groups"],
        "--batch": settings["batch"],
        "--accumulate": settings["accumulate"],
        "--group-chunk": settings["group_chunk"],
    }
    flags = []
    for flag, value in values.items():
        assert isinstance(value, int)
        flags += [flag, str(value)]
    return flags


def passes_of(run: Path) -> int:
    """Return the passes of the decoder in a step of a run."""
    config = read_config(run)
    settings = config["settings"]
    return settings["accumulate"] * math.ceil(config["groups"] / settings["group_chunk"])


def limit_memory(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    """Let the tensors of this process take at most ``memory`` bytes."""
    monkeypatch.setattr(auto_memory, "usable_bytes", lambda device, reserved: memory)


# all step plans


def test_step_plans_go_from_everything_at_once_to_one_image_and_one_group() -> None:
    plans = fit_problem().step_plans(may_reduce_groups=True)
    assert (plans[0].images, plans[0].chunk, plans[0].passes) == (8, 6, 1)
    assert (plans[-1].images, plans[-1].chunk, plans[-1].passes) == (1, 1, 48)
    assert all(plan.passes <= next_plan.passes for plan, next_plan in pairwise(plans))
    # Six groups in chunks of one need hardly more memory than one group.
    assert {plan.groups for plan in plans} == {6}
    assert {plan.images * plan.micro_batches for plan in plans} == {8}
    assert {plan.chunk for plan in plans} == {1, 2, 3, 6}


def test_processes_share_a_batch() -> None:
    plans = fit_problem(processes=2).step_plans(may_reduce_groups=False)
    assert {plan.images * plan.micro_batches for plan in plans} == {4}


def test_options_that_are_given_stay() -> None:
    plans = fit_problem(accumulate=2).step_plans(may_reduce_groups=True)
    assert {plan.micro_batches for plan in plans} == {2}
    plans = fit_problem(group_chunk=4).step_plans(may_reduce_groups=True)
    assert {plan.chunk for plan in plans} == {4}
    plans = fit_problem(group_chunk=20).step_plans(may_reduce_groups=True)
    assert {plan.chunk for plan in plans} == {6}, "there are only six groups"


def test_batch_norms_that_are_trained_make_chunks_of_groups_come_first() -> None:
    """Micro-batches change their statistics, and chunks of groups do not."""
    problem = fit_problem("lw-detr-tiny")
    plans = problem.step_plans(may_reduce_groups=False)
    assert [plan.micro_batches for plan in plans] == sorted(plan.micro_batches for plan in plans)
    fixed = replace(problem, recipe=problem.recipe.with_options(freeze_norms=True))
    passes = [plan.passes for plan in fixed.step_plans(may_reduce_groups=False)]
    assert passes == sorted(passes)
    assert [plan.passes for plan in plans] != passes


@pytest.mark.parametrize("name", ["table7/b-tiny", "table7/c-tiny"])
@pytest.mark.parametrize(
    ("may_reduce_groups", "expected"), [(False, [6]), (True, [6, 5, 4, 3, 2, 1])]
)
def test_dependent_groups_are_computed_at_once_and_are_reduced_only_on_request(
    name: str, may_reduce_groups: bool, expected: list[int]
) -> None:
    plans = fit_problem(name).step_plans(may_reduce_groups)
    assert list(dict.fromkeys(plan.groups for plan in plans)) == expected
    assert all(plan.chunk == plan.groups for plan in plans)


# the search


def linear_memory(
    fixed: float, per_pixel: float, per_group: float, per_both: float
) -> Callable[[StepPlan], float]:
    """Return a function of a step plan: the bytes that it needs, if memory is linear."""

    def needed_bytes(plan: StepPlan) -> float:
        pixel_bytes, group_bytes = per_pixel * plan.pixels, per_group * plan.chunk
        return fixed + pixel_bytes + group_bytes + per_both * plan.pixels * plan.chunk

    return needed_bytes


COEFFICIENTS = st.floats(0, 100)
MEMORIES = st.integers(1, 10**7)


@given(COEFFICIENTS, COEFFICIENTS, COEFFICIENTS, COEFFICIENTS, MEMORIES)
def test_if_memory_is_linear_the_first_plan_that_fits_is_found_with_few_measurements(
    fixed: float, per_pixel: float, per_group: float, per_both: float, memory: int
) -> None:
    needed_bytes = linear_memory(fixed, per_pixel, per_group, per_both)
    plans = all_step_plans()
    measured: list[StepPlan] = []

    def measure(plan: StepPlan) -> float:
        measured.append(plan)
        needed = needed_bytes(plan)
        return needed if needed <= memory else math.inf

    result = PlanSearch(plans, measure, memory).result
    best = next((plan for plan in plans if needed_bytes(plan) <= memory), None)
    if result != best:
        # Rounding decides if the best plan needs all of the memory.
        assert best is not None
        assert needed_bytes(best) == pytest.approx(memory, rel=1e-6)
    assert len(measured) == len(set(measured)) <= 6


@given(COEFFICIENTS, COEFFICIENTS, st.floats(0, 1e-2), MEMORIES)
def test_if_memory_is_not_linear_the_result_fits_all_the_same(
    fixed: float, per_pixel: float, curvature: float, memory: int
) -> None:
    def needed_bytes(plan: StepPlan) -> float:
        return fixed + per_pixel * plan.pixels + curvature * (plan.pixels * plan.chunk) ** 1.3

    result = PlanSearch(all_step_plans(), needed_bytes, memory).result
    assert result is None or needed_bytes(result) <= memory


@given(COEFFICIENTS, COEFFICIENTS, COEFFICIENTS, COEFFICIENTS, MEMORIES, MEMORIES)
def test_less_memory_never_means_fewer_passes(
    fixed: float, per_pixel: float, per_group: float, per_both: float, memory: int, other: int
) -> None:
    needed_bytes = linear_memory(fixed, per_pixel, per_group, per_both)
    plans = all_step_plans()
    less = PlanSearch(plans, needed_bytes, min(memory, other)).result
    more = PlanSearch(plans, needed_bytes, max(memory, other)).result
    assert less is None or (more is not None and less.passes >= more.passes)


def test_a_plan_that_is_as_large_as_one_that_failed_is_not_measured() -> None:
    measured: list[StepPlan] = []

    def needed_bytes(plan: StepPlan) -> float:
        return math.inf if plan.images > 1 or plan.chunk > 3 else 1.0

    def measure(plan: StepPlan) -> float:
        measured.append(plan)
        return needed_bytes(plan)

    result = PlanSearch(all_step_plans(), measure, memory=10).result
    assert result is not None
    assert (result.images, result.chunk) == (1, 3)
    failed: list[StepPlan] = []
    for plan in measured:
        assert not any(plan.covers(smaller) for smaller in failed)
        if needed_bytes(plan) == math.inf:
            failed.append(plan)


def test_a_plan_that_ran_out_of_memory_is_not_chosen_even_if_it_is_measured_to_fit() -> None:
    failed = fit_problem(accumulate=2, group_chunk=3).current
    result = PlanSearch(all_step_plans(), lambda _: 1.0, 10, known_failures=[failed]).result
    assert result is not None
    assert not result.covers(failed)


# trainings


def peak_of_training(monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, *options: str) -> int:
    """Train, and return the peak of all tensors in bytes, with validation and without fitting."""
    meter, fit_to_memory = HostMeter(UNLIMITED), auto_memory.fit_to_memory

    def fit_and_reset_peak(plan: DetectorPlan, may_reduce_groups: bool) -> DetectorPlan:
        fitted = fit_to_memory(plan, may_reduce_groups)
        gc.collect()
        meter.counter.peak = meter.counter.held
        return fitted

    with monkeypatch.context() as patch:
        patch.setattr(train_workflow, "fit_to_memory", fit_and_reset_peak)
        # The page of the run is not written.
        patch.setattr("groupdetr.workflows.run_plan.finish", lambda *_: None)
        return meter(lambda: train(data, out, *options))


# They take up to half a minute each, so only one is run every time.
SOME_OF_ALL_PRESETS = [
    pytest.param(name, marks=() if name == "dn-detr-tiny" else pytest.mark.slow)
    for name in TINY_PRESETS
]


@pytest.mark.parametrize("name", SOME_OF_ALL_PRESETS)
def test_a_fitted_run_of_any_detector_stays_below_the_limit(
    name: str, data_for: DataFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    augment = "detr" if name in IMAGE_PRESETS else "petr"
    options = ["--model", name, "--augment", augment]
    options += shlex.split("--steps 2 --eval-every 6 --ema 0.9 --set num_queries=50")
    data = data_for(name)
    unfitted = peak_of_training(
        monkeypatch, data, tmp_path / "unfitted", *options, "--batch", "8", "--groups", "6"
    )
    memory = int(0.6 * unfitted)
    limit_memory(monkeypatch, memory)
    fitted = peak_of_training(monkeypatch, data, tmp_path / "fitted", *options, *AUTO)
    assert 0.5 * memory < fitted <= memory
    assert passes_of(tmp_path / "fitted") > 1


def test_steps_that_draw_some_groups_need_the_memory_of_these_groups() -> None:
    problem = fit_problem(groups_per_step=2)
    plans = problem.step_plans(may_reduce_groups=False)
    assert {plan.chunk for plan in plans} == {1, 2}
    assert {plan.groups for plan in plans} == {6}
    needed = []
    for settings in ({}, {"groups_per_step": 2}):
        accelerator = create_accelerator(Settings(device="cpu"))
        probe = MemoryProbe(fit_problem(**settings), accelerator, UNLIMITED)
        needed.append(probe(problem.step_plan(6, 6, 1)))
    assert needed[1] < 0.7 * needed[0]


def test_measuring_does_not_change_the_random_state() -> None:
    """DN-DETR draws random numbers for denoising."""
    problem = fit_problem("dn-detr-tiny")
    before = torch.get_rng_state()
    probe = MemoryProbe(problem, create_accelerator(Settings(device="cpu")), UNLIMITED)
    smallest = problem.step_plans(may_reduce_groups=False)[-1]
    assert 0 < probe(smallest) < math.inf
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "name", ["conditional-detr-tiny", pytest.param("dino-tiny", marks=pytest.mark.slow)]
)
def test_a_fitted_run_is_bit_identical_to_one_with_the_same_numbers_given(
    name: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 12 * MIB)
    options = ("--model", name, "--steps", "3", "--set", "dropout=0.1", "num_queries=8")
    fitted = train(shapes, tmp_path / "fitted", *options, *AUTO)
    given_numbers = train(shapes, tmp_path / "given", *options, *fitted_flags(fitted))
    assert read_config(fitted)["settings"]["accumulate"] > 1
    assert losses_by_step(fitted) == losses_by_step(given_numbers)
    assert is_identical(load_checkpoint(fitted), load_checkpoint(given_numbers))
    assert read_config(fitted) == read_config(given_numbers)
    assert "auto_batch" not in read_config(fitted)


@pytest.mark.slow
def test_a_fitted_run_on_scenes_has_the_losses_of_a_run_with_everything_at_once(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are equal up to the order of sums, because PETR draws no random numbers."""
    options = ("--model", "petr-tiny", "--steps", "2", "--eval-every", "9")
    at_once = train(scenes, tmp_path / "at_once", *options, "--batch", "8", "--groups", "6")
    limit_memory(monkeypatch, 30 * MIB)
    fitted = train(scenes, tmp_path / "fitted", *options, *AUTO)
    assert read_config(fitted)["settings"]["accumulate"] > 1
    for step, expected in losses_by_step(at_once).items():
        assert losses_by_step(fitted)[step] == pytest.approx(expected, rel=1e-4)


def test_a_resumed_run_is_not_fitted_again(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--steps", "3", "--model", "dn-detr-tiny", *AUTO)
    limit_memory(monkeypatch, 5 * MIB)
    run = train(shapes, tmp_path / "run", *options, "--stop-after", "1")
    config = read_config(run)
    uninterrupted = train(shapes, tmp_path / "uninterrupted", *options)
    limit_memory(monkeypatch, 0)
    assert main(["train", "--resume", str(run)]) == 0
    assert read_config(run) == config
    assert is_identical(load_checkpoint(run), load_checkpoint(uninterrupted))


def test_a_resumed_run_is_fitted_again_with_batch_auto_and_keeps_its_groups(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit_memory(monkeypatch, 5 * MIB)
    run = train(shapes, tmp_path / "run", "--steps", "2", *AUTO, "--stop-after", "1")
    assert read_config(run)["settings"]["accumulate"] > 1
    limit_memory(monkeypatch, UNLIMITED)
    assert main(["train", "--resume", str(run), "--batch=auto"]) == 0
    assert read_config(run)["settings"]["accumulate"] == 1
    assert main(["train", "--resume", str(run), "--groups", "auto"]) == 2
    assert "--batch auto" in capsys.readouterr().err


def test_the_reason_of_the_choice_is_printed(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit_memory(monkeypatch, 20 * MIB)
    run = train(shapes, tmp_path / "run", "--steps", "1", *AUTO)
    output = capsys.readouterr().out
    assert "20 MiB to be used on cpu" in output
    assert "48 x 48 pixels with 3 objects" in output
    assert re.search(r"images x groups at once: .* MiB for 1 x 1, .* MiB for 2 x 1", output)
    assert f"chosen  {' '.join(fitted_flags(run))}" in output


@pytest.mark.parametrize(
    ("options", "groups", "batch"),
    [((), "6", "8"), (("--groups", "3"), "3", "8"), (("--batch", "6"), "6", "6")],
)
def test_with_auto_the_groups_and_the_batch_are_those_of_the_model_unless_given(
    options: tuple[str, ...],
    groups: str,
    batch: str,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit_memory(monkeypatch, UNLIMITED)
    run = train(shapes, tmp_path / "run", "--steps", "1", *AUTO, *options)
    expected = f"--groups {groups} --batch {batch} --accumulate 1 --group-chunk {groups}"
    assert fitted_flags(run) == expected.split()


def test_with_auto_the_default_folder_is_named_after_the_number_of_groups(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, UNLIMITED)
    monkeypatch.chdir(tmp_path)
    arguments = ["train", str(shapes), "--model", "conditional-detr-tiny"]
    assert main([*arguments, *SMALL_MODEL, *SMALL_SETTINGS, "--steps", "1", *AUTO]) == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith(f"{shapes.name}-conditional-detr-tiny-6g-")


def test_dependent_groups_are_reduced_if_micro_batches_do_not_suffice(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 12 * MIB)
    monkeypatch.chdir(tmp_path)
    options = ["--model", "table7/c-tiny", "--steps", "1", "--set", "num_queries=100"]
    assert main(["train", str(shapes), *SMALL_SETTINGS, *options, *AUTO]) == 0
    (run,) = Path("runs").iterdir()
    config = read_config(run)
    assert 1 < config["groups"] < 6
    assert f"-table7-c-tiny-{config['groups']}g-" in run.name, "K of the training, not of the model"
    assert config["settings"]["accumulate"] == 8
    assert Detector(run).recipe.num_groups == config["groups"]


def test_if_nothing_fits_the_error_names_other_options_that_save_memory(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit_memory(monkeypatch, MIB)
    assert main(train_arguments(shapes, tmp_path / "run", *AUTO)) == 2
    error = capsys.readouterr().err
    assert "1 image and 1 group" in error
    assert "--imgsz below 48 or --recompute or --precision bf16" in error
    arguments = train_arguments(shapes, tmp_path / "run", *AUTO, "--recompute", "--accumulate", "2")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "without --accumulate or --imgsz below 48 or --precision bf16" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--groups", "many"), ("--batch", "soon"), ("--group-chunk", "auto")]
)
def test_no_other_word_than_auto_is_accepted(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["train", "data", option, value])
    assert raised.value.code == 2
    output = capsys.readouterr()
    assert value in output.out + output.err


def test_the_number_of_groups_must_be_positive(
    shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(shapes), "--groups", "0"]) == 2
    assert "--groups" in capsys.readouterr().err


# out of memory


def run_out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def run_out_of_cpu_memory() -> None:
    torch.empty(1 << 50)


def fail_in_second_step(
    monkeypatch: pytest.MonkeyPatch, fail: Callable[[], object]
) -> list[weakref.ref[nn.Module]]:
    """Let the second step of a training fail, unless its batch is divided into micro-batches.

    Return a list to which the detectors are added whose training failed.
    """
    step = Trainer.take_step
    failed_models: list[weakref.ref[nn.Module]] = []

    def failing_step(self: Trainer, network: nn.Module, micro_batches: list[Any]) -> Any:
        if len(micro_batches) == 1 and self.state.progress.step == 1:
            failed_models.append(weakref.ref(self.model))
            images = micro_batches[0].images(torch.device("cpu"))
            # Activations exist when memory runs out.
            outputs = self.model(images, micro_batches[0].targets)
            fail()
            del outputs
        return step(self, network, micro_batches)

    monkeypatch.setattr(Trainer, "take_step", failing_step)
    return failed_models


@dataclass(frozen=True)
class Failure:
    """A training of everything at once that runs out of memory."""

    model: str
    memory: int  # in MiB
    fail: Callable[[], None]


@pytest.mark.parametrize(
    "failure",
    [
        Failure("dn-detr-tiny", 5, run_out_of_gpu_memory),
        Failure("dn-detr-tiny", 5, run_out_of_cpu_memory),
        pytest.param(Failure("petr-tiny", 30, run_out_of_gpu_memory), marks=pytest.mark.slow),
    ],
    ids=lambda failure: f"{failure.model}-{failure.fail.__name__}",
)
def test_out_of_memory_prints_a_command_that_resumes_the_run_and_fits(
    failure: Failure,
    data_for: DataFor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit_memory(monkeypatch, failure.memory * MIB)
    fail_in_second_step(monkeypatch, failure.fail)
    run = tmp_path / "run"
    options = ("--model", failure.model, "--steps", "3", "--save-every", "1")
    assert main(train_arguments(data_for(failure.model), run, *options)) == 2
    error = capsys.readouterr().err
    assert "memory ran out at step 2" in error
    (command,) = re.findall(r"do: +groupdetr (train --resume .*)", error)
    assert re.search(r"--accumulate [24] --group-chunk [12]$", command)
    assert main(shlex.split(command)) == 0
    assert load_checkpoint(run)["progress"]["step"] == 3


def test_after_out_of_memory_the_model_is_freed_before_the_hint_is_measured(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Even with unlimited memory, the hint does not name the plan that failed."""
    failed_models = fail_in_second_step(monkeypatch, run_out_of_gpu_memory)
    is_alive: list[bool] = []

    def check_model_and_return_memory(device: torch.device, reserved: int) -> int:
        gc.collect()
        is_alive.append(failed_models[0]() is not None)
        return UNLIMITED

    monkeypatch.setattr(auto_memory, "usable_bytes", check_model_and_return_memory)
    assert main(train_arguments(shapes, tmp_path / "run", "--steps", "3")) == 2
    assert is_alive == [False]
    assert "--accumulate 1 --group-chunk 1" in capsys.readouterr().err


def test_if_no_plan_would_have_fitted_the_hint_names_other_options_that_save_memory(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit_memory(monkeypatch, MIB)
    fail_in_second_step(monkeypatch, run_out_of_gpu_memory)
    options = ("--steps", "3", "--precision", "bf16")
    assert main(train_arguments(shapes, tmp_path / "run", *options)) == 2
    assert "resume with --imgsz below 48 or --recompute" in capsys.readouterr().err


def test_other_errors_are_not_reported_as_out_of_memory(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in_second_step(monkeypatch, lambda: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        main(train_arguments(shapes, tmp_path / "run", "--steps", "3"))


# several processes

# `groupdetr` with another limit of memory in every process.
LIMITED_PROGRAM = """
import os
import sys
from groupdetr.cli.main import main
from groupdetr.workflows import auto_memory

memory = {memory}[int(os.environ["RANK"])]
auto_memory.usable_bytes = lambda device, reserved: memory
sys.exit(main(sys.argv[1:]))
"""


def test_all_processes_choose_the_plan_of_the_one_with_the_least_memory(
    shapes: Path, tmp_path: Path
) -> None:
    program = tmp_path / "limited.py"
    program.write_text(LIMITED_PROGRAM.format(memory=[UNLIMITED, 5 * MIB]))
    fitted = tmp_path / "fitted"
    arguments = train_arguments(shapes, fitted, "--steps", "2", *AUTO)
    process = torchrun(2, arguments, program=[str(program)])
    assert process.returncode == 0, process.stderr
    assert passes_of(fitted) > 1
    given_numbers = train(shapes, tmp_path / "given", "--steps", "2", *fitted_flags(fitted))
    for step, expected in losses_by_step(given_numbers).items():
        assert losses_by_step(fitted)[step] == pytest.approx(expected, rel=1e-4)
