"""The same training in whatever memory there is: what `auto` chooses fits, is no dearer than it must be, and changes
nothing else."""

from __future__ import annotations

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
from groupdetr.data.worst_case import Worst
from groupdetr.engine.accelerator import accelerator
from groupdetr.engine.memory import HostMeter
from groupdetr.engine.trainer import Trainer
from groupdetr.experiments import experiment
from groupdetr.settings import Settings
from groupdetr.workflows import auto_memory as fitting
from groupdetr.workflows import train as training
from groupdetr.workflows.auto_memory import Case, Fit, Way
from tests.runs import OF_PICTURES, TINY, arguments, checkpoint, losses, same, torchrun, train

MIB = 1 << 20
DataFor = Callable[[str], Path]  # a preset
WORST = Worst((50, 40), (50, 50), 3)
AUTO = ("--groups", "auto", "--batch", "auto")


def case(name: str = "conditional-detr-tiny", processes: int = 1, **settings: Any) -> Case:
    chosen = experiment(name)
    recipe = replace(chosen.recipe, num_groups=chosen.groups or chosen.recipe.num_groups)
    return Case(recipe, Settings(**{"batch": 8, **settings}), WORST, processes)


def config(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


def numbers(run: Path) -> tuple[str, ...]:
    """The options that a run was fitted with."""
    told = config(run)
    names = ("batch", "accumulate", "group_chunk")
    flags = [("groups", told["groups"]), *((name, told["settings"][name]) for name in names)]
    assert all(isinstance(value, int) for _, value in flags)
    return tuple(
        text for name, value in flags for text in (f"--{name.replace('_', '-')}", str(value))
    )


def passes(run: Path) -> int:
    told = config(run)
    return told["settings"]["accumulate"] * math.ceil(
        told["groups"] / told["settings"]["group_chunk"]
    )


def limited(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(fitting, "usable", lambda *_: memory)


# which ways there are


def test_ways_go_from_all_at_once_to_one_image_and_one_group() -> None:
    ways = case().ways(fewer=True)
    assert (ways[0].images, ways[0].chunk, ways[0].passes) == (8, 6, 1)
    assert (ways[-1].images, ways[-1].chunk, ways[-1].passes) == (1, 1, 48)
    assert all(a.passes <= b.passes for a, b in pairwise(ways))
    assert {way.groups for way in ways} == {6}, (
        "groups one at a time need hardly more than one group"
    )
    assert {way.images * way.pieces for way in ways} == {8}
    assert {way.chunk for way in ways} == {1, 2, 3, 6}


def test_processes_share_a_batch() -> None:
    ways = case(processes=2).ways(fewer=False)
    assert {way.images * way.pieces for way in ways} == {4}


def test_what_was_asked_for_stays() -> None:
    assert {way.pieces for way in case(accumulate=2).ways(fewer=True)} == {2}
    assert {way.chunk for way in case(group_chunk=4).ways(fewer=True)} == {4}
    assert {way.chunk for way in case(group_chunk=20).ways(fewer=True)} == {6}


@pytest.mark.parametrize("name", ["table7/b-tiny", "table7/c-tiny"])
def test_groups_that_cannot_be_computed_apart_are_all_at_once_and_fewer_if_that_was_asked_for(
    name: str,
) -> None:
    for fewer, groups in ((False, [6]), (True, [6, 5, 4, 3, 2, 1])):
        ways = case(name).ways(fewer)
        assert list(dict.fromkeys(way.groups for way in ways)) == groups
        assert all(way.chunk == way.groups for way in ways)


# which of them is chosen


def linear(fixed: float, image: float, group: float, both: float) -> Callable[[Way], float]:
    return lambda way: (
        fixed + image * way.pixels + group * way.chunk + both * way.pixels * way.chunk
    )


COSTS = st.floats(0, 100)


@given(COSTS, COSTS, COSTS, COSTS, st.integers(1, 10**7))
def test_where_memory_is_linear_the_first_way_that_fits_is_found_by_few_measurements(
    fixed: float, image: float, group: float, both: float, memory: int
) -> None:
    needed, tried, ways = linear(fixed, image, group, both), list[Way](), case().ways(fewer=False)

    def measure(way: Way) -> float:
        tried.append(way)
        return needed(way) if needed(way) <= memory else math.inf

    fit = Fit(ways, measure, memory)
    best = next((way for way in ways if needed(way) <= memory), None)
    if fit.way != best:  # at the very edge rounding may tell otherwise
        assert best is not None
        assert needed(best) == pytest.approx(memory, rel=1e-6)
    assert len(tried) == len(set(tried)) <= 6


@given(COSTS, COSTS, st.floats(0, 1e-2), st.integers(1, 10**7))
def test_where_it_is_not_what_is_chosen_fits_all_the_same(
    fixed: float, image: float, curve: float, memory: int
) -> None:
    def needed(way: Way) -> float:
        return fixed + image * way.pixels + curve * (way.pixels * way.chunk) ** 1.3

    fit = Fit(case().ways(fewer=False), needed, memory)
    assert fit.way is None or needed(fit.way) <= memory


@given(COSTS, COSTS, COSTS, COSTS, st.lists(st.integers(1, 10**7), min_size=2, max_size=2))
def test_less_memory_is_never_fewer_passes(
    fixed: float, image: float, group: float, both: float, memories: list[int]
) -> None:
    less, more = (
        Fit(case().ways(fewer=False), linear(fixed, image, group, both), memory).way
        for memory in sorted(memories)
    )
    assert less is None or (more is not None and less.passes >= more.passes)


def test_what_is_as_large_as_what_failed_is_not_tried() -> None:
    ways, tried = case().ways(fewer=False), list[Way]()

    def needed(way: Way) -> float:
        return math.inf if way.images > 1 or way.chunk > 3 else 1.0

    def measure(way: Way) -> float:
        tried.append(way)
        return needed(way)

    fit = Fit(ways, measure, 10)
    assert fit.way is not None
    assert (fit.way.images, fit.way.chunk) == (1, 3)
    for i, way in enumerate(tried):
        assert not any(way.covers(before) for before in tried[:i] if needed(before) == math.inf)


def test_a_way_that_ran_out_of_memory_is_not_chosen_however_little_it_seems_to_need() -> None:
    it = case(accumulate=2, group_chunk=3)
    fit = Fit(case().ways(fewer=False), lambda _: 1.0, 10, [it.current])
    assert fit.way is not None
    assert not fit.way.covers(it.current)


# trainings


def peak(monkeypatch: pytest.MonkeyPatch, *options: Any) -> int:
    """Bytes of all tensors of a training at once, its validation included."""
    host, fitted = HostMeter(1 << 40), fitting.fitted

    def forgotten(*asked: Any) -> Any:
        answer = fitted(*asked)
        gc.collect()
        host.peak = host.held
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(training, "fitted", forgotten)
        patch.setattr(training, "finish", lambda *_: None)
        return host(lambda: train(*options))


@pytest.mark.parametrize("name", TINY)
def test_a_fitted_run_of_any_detector_stays_below_its_memory(
    name: str, data_for: DataFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    augment = "detr" if name in OF_PICTURES else "petr"
    options = (
        "--model",
        name,
        "--steps",
        "3",
        "--eval-every",
        "6",
        "--augment",
        augment,
        "--ema",
        "0.9",
    )
    options = (*options, "--set", "num_queries=50")
    whole = peak(
        monkeypatch, data_for(name), tmp_path / "whole", *options, "--batch", "8", "--groups", "6"
    )
    memory = int(0.6 * whole)
    limited(monkeypatch, memory)
    assert (
        0.5 * memory
        < peak(monkeypatch, data_for(name), tmp_path / "run", *options, *AUTO)
        <= memory
    )
    assert passes(tmp_path / "run") > 1


def test_measuring_leaves_random_numbers_as_they_were() -> None:
    """With denoising, which draws them."""
    it, before = case("dn-detr-tiny"), torch.get_rng_state()
    probe = fitting.Probe(it, accelerator(Settings(device="cpu")), 1 << 40)
    assert 0 < probe(it.ways(fewer=False)[-1]) < math.inf
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["conditional-detr-tiny", "dino-tiny"])
def test_fitting_changes_no_bit_of_a_training_that_is_told_the_same_numbers(
    name: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 12 * MIB)
    options = ("--model", name, "--steps", "3", "--set", "dropout=0.1", "num_queries=8")
    fitted = train(shapes, tmp_path / "fitted", *options, *AUTO)
    told = train(shapes, tmp_path / "told", *options, *numbers(fitted))
    assert config(fitted)["settings"]["accumulate"] > 1
    assert losses(fitted) == losses(told)
    assert same(checkpoint(fitted), checkpoint(told))
    assert config(fitted) == config(told)
    assert "fit" not in config(fitted)


def test_a_fitted_run_on_scenes_learns_what_one_of_all_at_once_does(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the order of sums, where no random numbers are drawn."""
    options = ("--model", "petr-tiny", "--steps", "2", "--eval-every", "9")
    whole = train(scenes, tmp_path / "whole", *options, "--batch", "8", "--groups", "6")
    limited(monkeypatch, 30 * MIB)
    fitted = train(scenes, tmp_path / "fitted", *options, *AUTO)
    assert config(fitted)["settings"]["accumulate"] > 1
    for step, expected in losses(whole).items():
        assert losses(fitted)[step] == pytest.approx(expected, rel=1e-4)


def test_a_resumed_run_is_not_fitted_again(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--steps", "3", "--model", "dn-detr-tiny", *AUTO)
    limited(monkeypatch, 5 * MIB)
    run = train(shapes, tmp_path / "run", *options, "--stop-after", "1")
    before = config(run)
    whole = train(shapes, tmp_path / "whole", *options)
    limited(monkeypatch, 0)
    assert main(["train", "--resume", str(run)]) == 0
    assert config(run) == before
    assert same(checkpoint(run), checkpoint(whole))


def test_but_it_is_if_it_is_asked_to_be(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limited(monkeypatch, 5 * MIB)
    run = train(shapes, tmp_path / "run", "--steps", "2", *AUTO, "--stop-after", "1")
    assert config(run)["settings"]["accumulate"] > 1
    limited(monkeypatch, 1 << 40)
    assert main(["train", "--resume", str(run), "--batch=auto"]) == 0
    assert config(run)["settings"]["accumulate"] == 1
    assert main(["train", "--resume", str(run), "--groups", "auto"]) == 2
    assert "--batch auto" in capsys.readouterr().err


def test_it_says_why(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limited(monkeypatch, 20 * MIB)
    run = train(shapes, tmp_path / "run", "--steps", "1", *AUTO)
    said = capsys.readouterr().out
    assert "20 MiB to be used on cpu" in said
    assert "48 x 48 pixels with 3 objects" in said
    assert re.search(r"images x groups at once: .* MiB for 1 x 1, .* MiB for 2 x 1", said)
    assert f"chosen  {' '.join(numbers(run))}" in said


def test_k_and_batch_are_the_models_own_unless_given(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 1 << 40)
    for more, groups, batch in (((), 6, 8), (("--groups", "3"), 3, 8), (("--batch", "6"), 6, 6)):
        run = train(shapes, tmp_path / f"{groups}-{batch}", "--steps", "1", *AUTO, *more)
        assert numbers(run) == (
            *("--groups", str(groups), "--batch", str(batch)),
            *("--accumulate", "1", "--group-chunk", str(groups)),
        )


def test_fewer_groups_are_taken_where_nothing_else_helps(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 12 * MIB)
    options = ("--model", "table7/c-tiny", "--steps", "1", "--set", "num_queries=100")
    run = train(shapes, tmp_path / "run", *options, *AUTO)
    told = config(run)
    assert 1 < told["groups"] < 6
    assert told["settings"]["accumulate"] == 8
    assert Detector(run).recipe.num_groups == told["groups"]


def test_where_nothing_fits_the_error_says_what_else_saves_memory(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limited(monkeypatch, MIB)
    assert main(arguments(shapes, tmp_path / "run", *AUTO)) == 2
    said = capsys.readouterr().err
    assert "1 image and 1 group" in said
    assert "--imgsz below 48 or --recompute or --precision bf16" in said
    again = arguments(shapes, tmp_path / "run", *AUTO, "--recompute", "--accumulate", "2")
    assert main(again) == 2
    assert "without --accumulate or --imgsz below 48 or --precision bf16" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "nonsense", [("--groups", "many"), ("--batch", "soon"), ("--group-chunk", "auto")]
)
def test_other_words_than_auto_are_refused(
    nonsense: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "data", *nonsense])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert nonsense[1] in said.out + said.err


@pytest.mark.parametrize("count", ["0", "-1"])
def test_so_are_numbers_of_groups_that_are_none(
    count: str, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(shapes), "--groups", count]) == 2
    assert "--groups" in capsys.readouterr().err


# out of memory


def as_a_gpu_says_it() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def as_a_cpu_says_it() -> None:
    torch.empty(1 << 50)


def failing(
    monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None]
) -> list[weakref.ref[nn.Module]]:
    """Memory runs out in the second step of all that is not cut to pieces. Returns the detectors that were trained."""
    step, trained = Trainer.step, list[weakref.ref[nn.Module]]()

    def limited_step(self: Trainer, network: nn.Module, pieces: list[Any]) -> Any:
        if len(pieces) == 1 and self.state.progress.step == 1:
            trained.append(weakref.ref(self.model))
            kept = self.model(pieces[0].images(torch.device("cpu")), pieces[0].targets)
            fail()
            del kept
        return step(self, network, pieces)

    monkeypatch.setattr(Trainer, "step", limited_step)
    return trained


@dataclass(frozen=True)
class Failure:
    """Of a training of all at once, where ``memory`` in MiB is too little for it."""

    name: str
    memory: int
    says: Callable[[], None]


@pytest.mark.parametrize(
    "failure",
    [
        Failure("dn-detr-tiny", 5, as_a_gpu_says_it),
        Failure("dn-detr-tiny", 5, as_a_cpu_says_it),
        Failure("petr-tiny", 30, as_a_gpu_says_it),
    ],
    ids=lambda failure: f"{failure.name}-{failure.says.__name__}",
)
def test_out_of_memory_names_what_would_have_fitted_and_that_works(
    failure: Failure,
    data_for: DataFor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limited(monkeypatch, failure.memory * MIB)
    failing(monkeypatch, failure.says)
    run, options = tmp_path / "run", ("--model", failure.name, "--steps", "3", "--save-every", "1")
    assert main(arguments(data_for(failure.name), run, *options)) == 2
    said = capsys.readouterr().err
    assert "memory ran out at step 2" in said
    (command,) = re.findall(r"do: +groupdetr (train --resume .*)", said)
    assert re.search(r"--accumulate [24] --group-chunk [12]$", command)
    assert main(shlex.split(command)) == 0
    assert checkpoint(run)["progress"]["step"] == 3


def test_the_memory_of_the_training_is_free_before_it_is_measured_what_fits(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And were there plenty of it then, the way that failed is not named again."""
    trained, alive = failing(monkeypatch, as_a_gpu_says_it), list[bool]()

    def look(*_: Any) -> int:
        gc.collect()
        alive.append(trained[0]() is not None)
        return 1 << 40

    monkeypatch.setattr(fitting, "usable", look)
    assert main(arguments(shapes, tmp_path / "run", "--steps", "3")) == 2
    assert alive == [False]
    assert "--accumulate 1 --group-chunk 1" in capsys.readouterr().err


def test_where_nothing_would_have_fitted_it_says_what_else_saves_memory(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limited(monkeypatch, MIB)
    failing(monkeypatch, as_a_gpu_says_it)
    assert main(arguments(shapes, tmp_path / "run", "--steps", "3", "--precision", "bf16")) == 2
    assert "resume with --imgsz below 48 or --recompute" in capsys.readouterr().err


def test_other_errors_are_not_taken_for_it(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        main(arguments(shapes, tmp_path / "run", "--steps", "3"))


# several processes

LIMITED = """
import sys
from groupdetr.workflows import auto_memory as fitting
from groupdetr.workflows import train as training
from groupdetr.cli import main

fitting.usable = lambda device, apart: {memory}[int(__import__("os").environ["RANK"])]
sys.exit(main(sys.argv[1:]))
"""


def test_processes_choose_alike_for_the_one_with_the_least_memory(
    shapes: Path, tmp_path: Path
) -> None:
    (tmp_path / "limited.py").write_text(LIMITED.format(memory=[1 << 40, 5 * MIB]))
    run = tmp_path / "run"
    done = torchrun(
        2,
        29641,
        arguments(shapes, run, "--steps", "2", *AUTO),
        program=[str(tmp_path / "limited.py")],
    )
    assert done.returncode == 0, done.stderr
    assert passes(run) > 1
    told = train(shapes, tmp_path / "told", "--steps", "2", *numbers(run))
    for step, expected in losses(told).items():
        assert losses(run)[step] == pytest.approx(expected, rel=1e-4)
