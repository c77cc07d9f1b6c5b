"""Every example in the docstring of a public name runs, and prints what it shows."""

from __future__ import annotations

import doctest
import inspect
import io
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import groupdetr
from groupdetr import registry
from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.settings import DEFAULT_MODEL
from groupdetr.tasks.detection_result import DetectionResult

NEEDS_A_DOWNLOAD = {"load_weights"}  # it loads a published checkpoint
EXAMPLES = [
    name
    for name in groupdetr.__all__
    if callable(getattr(groupdetr, name)) and name not in NEEDS_A_DOWNLOAD
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shapes: Path, scenes: Path) -> Path:
    """A folder with the datasets, the runs and the images that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(shapes, folder / "data/mine")
    shutil.copytree(scenes, folder / "nuscenes")
    photo = min(shapes.rglob("*.png"), default=None) or min(shapes.rglob("*.jpg"))
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        shutil.copy(photo, folder / name)
    (folder / "my_detectors.py").write_text("import groupdetr\n")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> groupdetr.TrainingResult:
    """The result of a training of one step."""
    small = {"channels": 32, "num_heads": 2, "num_queries": 8}
    # An export takes seconds for every layer.
    small |= {"encoder_layers": 1, "decoder_layers": 1}
    result = groupdetr.train(
        folder / "data/mine",
        model="conditional-detr-tiny",
        groups=2,
        set=small,
        steps=1,
        imgsz=48,
        batch=4,
        workers=0,
        device="cpu",
        out=folder / "runs/mine",
    )
    shutil.copytree(result.path, folder / "runs/other")
    return result


@pytest.fixture(scope="module")
def scene_run(folder: Path) -> None:
    """A training of one step on scenes."""
    groupdetr.train(
        folder / "nuscenes",
        model="petr-tiny",
        groups=2,
        queries=12,
        steps=1,
        batch=2,
        workers=0,
        device="cpu",
        out=folder / "runs/scenes",
    )


@pytest.fixture
def names(
    folder: Path, run: groupdetr.TrainingResult, scene_run: None, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The names that the examples use. What an example registers is forgotten after it."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(registry, "EXPERIMENTS", dict(EXPERIMENTS))
    monkeypatch.setattr(registry, "_loaded_plugins", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(DetectionResult, "show", lambda self: self.draw())
    monkeypatch.setattr(groupdetr, "train", partial(accept_training, run), raising=False)
    model = groupdetr.create_model("conditional-detr-tiny", num_classes=3, num_groups=2)
    criterion = groupdetr.create_criterion(model)
    images = groupdetr.Images.from_list([torch.rand(3, 64, 64)])
    target = groupdetr.Target(torch.tensor([2]), torch.tensor([[0.5, 0.5, 0.2, 0.3]]))
    return {
        "groupdetr": groupdetr,
        "np": np,
        "torch": torch,
        "MultiheadAttentionWithinGroups": groupdetr.MultiheadAttentionWithinGroups,
        "Settings": groupdetr.Settings,
        "MyDETR": TinyConditionalDETR,
        "model": model,
        "images": images,
        "targets": [target],
        "criterion": criterion,
        "micro_batches": [(model(images, [target]), [target]) for _ in range(2)],
    }


def accept_training(
    run: groupdetr.TrainingResult,
    data: str,
    *,
    model: str = DEFAULT_MODEL,
    groups: int = 1,
    callbacks: Sequence[groupdetr.Callback] = (),
    **settings: Any,
) -> groupdetr.TrainingResult:
    """Check the arguments of a training of many epochs, and return that of one step instead."""
    assert Path(data).is_dir()
    assert model in groupdetr.list_models()
    assert groups >= 1
    assert all(isinstance(callback, groupdetr.Callback) for callback in callbacks)
    groupdetr.Settings(**settings)
    return run


def run_examples(docstring: str, names: dict[str, Any]) -> None:
    """Run the examples of a docstring. The output is compared where the docstring shows it."""
    checker = doctest.OutputChecker()
    for example in doctest.DocTestParser().get_examples(docstring):
        output = io.StringIO()
        with redirect_stdout(output):
            exec(compile(example.source, "<example>", "single"), names)
        if example.want:
            assert checker.check_output(example.want, output.getvalue(), 0), (
                f"{example.source} prints {output.getvalue()} and not {example.want}"
            )


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_public_name_runs(name: str, names: dict[str, Any]) -> None:
    run_examples(inspect.getdoc(getattr(groupdetr, name)) or "", names)


def test_the_example_of_the_library_runs(names: dict[str, Any]) -> None:
    run_examples(groupdetr.__doc__ or "", names)


def test_an_example_that_prints_something_else_fails() -> None:
    with pytest.raises(AssertionError, match="prints 2"):
        run_examples(">>> 1 + 1\n3\n", {})
