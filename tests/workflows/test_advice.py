"""`train` advises, before the first step, against what would make a training useless."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import groupdetr
from groupdetr.registry import experiment
from groupdetr.tasks.registry import task_class
from groupdetr.workflows import train as train_workflow
from groupdetr.workflows.advice import advice, describe
from groupdetr.workflows.detector_plan import DetectorPlan
from tests.runs import TINY_PRESETS

LONG = {"steps": 10_000, "workers": 0}
RESNET18 = "resnet18.a1_in1k"


class PlanIsMadeError(Exception):
    """Ends `groupdetr.train` in place of the training."""


@pytest.fixture
def advise(
    shapes: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """A function that returns the advice for a training with these options."""

    def advise(model: str, **options: Any) -> list[str]:
        data = scenes if task_class(experiment(model).task).input_kind == "scenes" else shapes
        return advice(make_plan(monkeypatch, data, tmp_path / "run", model, **options))

    return advise


def make_plan(
    monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, model: str, **options: Any
) -> DetectorPlan:
    """Return the plan of a training with these options, which does not begin."""
    plans: list[DetectorPlan] = []

    def run_plan(plan: DetectorPlan, _: object) -> None:
        plans.append(plan)
        raise PlanIsMadeError

    monkeypatch.setattr(train_workflow, "run_plan", run_plan)
    with pytest.raises(PlanIsMadeError):
        groupdetr.train(data, model=model, out=out, check=False, **{**LONG, **options})
    return plans[0]


@pytest.mark.parametrize(
    ("imgsz", "expected"),
    [(64, "squares of 64"), (100, "squares of 96, because sides are multiples of 16")],
)
def test_the_side_of_squares_is_described_as_the_network_gets_it(
    imgsz: int, expected: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(monkeypatch, shapes, tmp_path / "run", "rf-detr-micro", imgsz=imgsz)
    (line,) = [x for x in describe(plan, nn.Linear(1, 1), 10).splitlines() if x.startswith("data ")]
    assert line.endswith(f", {expected}")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"backbone": RESNET18}, "or use --pretrained-backbone auto"),
        # timm has no weights of this network.
        ({"backbone": "starnet_s050"}, "or use --pretrained-backbone FILE"),
        ({"set": {"frozen_stages": 0}, "backbone": RESNET18}, "frozen_stages=0 keeps those"),
    ],
)
def test_random_weights_that_are_not_trained_are_advised_against(
    options: dict[str, Any], remedy: str, advise: Callable[..., list[str]]
) -> None:
    options = {"pretrained_backbone": "none", "set": {"frozen_stages": 1}, **options}
    (line,) = advise("conditional-detr-tiny", **options)
    assert "the backbone has random weights, and frozen_stages=" in line
    assert "--set frozen_stages=-1" in line
    assert remedy in line


def test_a_detector_that_is_published_to_be_fine_tuned_names_its_weights(
    advise: Callable[..., list[str]],
) -> None:
    sizes = {"vit_width": 24, "vit_heads": 2, "num_queries": 5}
    (line,) = advise("rf-detr-nano", imgsz=64, set=sizes)
    assert "random numbers" in line
    assert "--weights Roboflow/rf-detr-nano" in line


@pytest.mark.parametrize("weights", [{"pretrained_backbone": "file"}, {"weights": "file"}])
def test_weights_of_a_file_need_no_advice(
    weights: dict[str, str], advise: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    options: dict[str, Any] = {name: tmp_path / file for name, file in weights.items()}
    options |= {"backbone": RESNET18, "set": {"frozen_stages": 1}}
    assert advise("conditional-detr-tiny", **options) == []


def test_the_presets_for_a_cpu_need_no_advice(advise: Callable[..., list[str]]) -> None:
    for preset in TINY_PRESETS:
        assert advise(preset) == [], preset


def test_a_training_that_is_too_short_is_advised_against(advise: Callable[..., list[str]]) -> None:
    warmup, short = advise("conditional-detr-tiny", steps=30, warmup=20)
    assert "the learning rate is reached after 10 steps" in warmup
    assert "30 steps teach a detector little; give it more with --steps 300" in short
