"""Loading the weights of some parts of a detector: ``--weights RUN --weights-of backbone``."""

from __future__ import annotations

from pathlib import Path
from shlex import split
from typing import Any

import pytest
import torch
from torch import Tensor

import groupdetr
from groupdetr.checkpoints.native import save
from groupdetr.errors import UsageError, WeightsError
from groupdetr.modeling.detr import DetectionTransformer, part_of
from groupdetr.registry import experiment, recipe_to_dict
from groupdetr.settings import PARTS
from groupdetr.weights.loading import load_weights
from tests.runs import load_checkpoint, train


def build(name: str, seed: int, **options: Any) -> DetectionTransformer:
    torch.manual_seed(seed)
    return experiment(name).recipe.with_options(**options).build()


def write(model: DetectionTransformer, path: Path) -> Path:
    categories = [[i, f"class {i}"] for i in range(model.recipe.num_classes)]  # type: ignore[attr-defined]
    save(
        model,
        path,
        {"recipe": recipe_to_dict(model.recipe), "categories": categories, "imgsz": 64},  # type: ignore[arg-type]
    )
    return path


def copied(model: DetectionTransformer) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


@pytest.mark.parametrize(
    "name", ["conditional-detr-tiny", "dino-tiny", "mask2former-tiny", "petrv2-tiny"]
)
def test_exactly_the_chosen_parts_have_the_weights_of_the_file(name: str, tmp_path: Path) -> None:
    source = build(name, seed=1, num_classes=3)
    file = write(source, tmp_path / "weights.safetensors")
    for parts in (["backbone", "encoder"], ["decoder", "heads"], ["queries"]):
        model = build(name, seed=2, num_classes=3)
        before = copied(model)
        load_weights(model, file, parts=parts)
        for key, value in model.state_dict().items():
            expected = source.state_dict() if part_of(key) in parts else before
            assert torch.equal(value, expected[key]), key


def test_the_rest_of_the_file_may_be_of_another_detector(tmp_path: Path) -> None:
    """Backbone and encoder of a detector with other queries, classes, decoder and heads."""
    source = build("dino-tiny", seed=1, num_classes=7, num_queries=5, decoder_layers=1)
    file = write(source, tmp_path / "weights.safetensors")
    model = build("dab-deformable-detr-tiny", seed=2, num_classes=3)
    report = load_weights(model, file, parts=["backbone", "encoder"])
    for part in ("backbone", "encoder"):
        theirs = getattr(source, part).state_dict()
        assert all(
            torch.equal(x, theirs[key]) for key, x in getattr(model, part).state_dict().items()
        )
    text = "\n".join(report.lines)
    assert "backbone: loaded" in text
    assert "decoder, queries, heads: not taken from the file" in text
    assert "classes" not in text


def test_a_part_that_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    file = write(build("conditional-detr-tiny", seed=1, num_classes=3), tmp_path / "w.safetensors")
    model = build("dino-tiny", seed=2, num_classes=3)
    before = copied(model)
    with pytest.raises(WeightsError, match=r"encoder\."):
        load_weights(model, file, parts=["encoder"])
    narrow = build("conditional-detr-tiny", seed=2, num_classes=3, channels=32, num_heads=4)
    with pytest.raises(WeightsError, match="of another shape"):
        load_weights(narrow, file, parts=["encoder"])
    with pytest.raises(UsageError, match="neck"):
        load_weights(model, file, parts=["neck"])
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())


def test_classes_of_heads_are_loaded_by_name_and_those_of_other_parts_do_not_matter(
    tmp_path: Path,
) -> None:
    file = write(build("conditional-detr-tiny", seed=1, num_classes=7), tmp_path / "w.safetensors")
    model = build("conditional-detr-tiny", seed=2, num_classes=3)
    load_weights(model, file, parts=["decoder"])
    with pytest.raises(WeightsError, match="7 classes in the file"):
        load_weights(model, file, parts=["decoder", "heads"])
    names = ["class 6", "new", "class 0"]
    report = load_weights(model, file, parts=["heads"], new_head=True, class_names=names)
    assert "classes: 2 rows loaded by name, 1 newly initialised" in report.lines


class FirstWeights(groupdetr.Callback):
    """Keeps the weights that a training begins with."""

    state: dict[str, Tensor]

    def on_train_start(self, trainer: Any) -> None:
        self.state = {name: x.clone() for name, x in trainer.model.state_dict().items()}


def test_a_training_takes_the_chosen_parts_and_starts_the_rest_as_without_weights(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = split("channels=32 num_heads=2 dim_feedforward=32 decoder_layers=2")
    source = train(shapes, tmp_path / "source", "--steps", "2", "--set", *small, "num_queries=4")
    capsys.readouterr()
    options: dict[str, Any] = {
        "model": "conditional-detr-tiny",
        "groups": 2,
        "set": {"channels": 32, "num_heads": 2, "dim_feedforward": 32, "decoder_layers": 2},
        "steps": 1,
        "batch": 4,
        "imgsz": 48,
        "workers": 0,
        "device": "cpu",
    }
    without, taken = FirstWeights(), FirstWeights()
    groupdetr.train(shapes, out=tmp_path / "a", callbacks=[without], **options)
    weights: dict[str, Any] = {"weights": source, "weights_of": ["backbone", "encoder"]}
    run = groupdetr.train(shapes, out=tmp_path / "b", callbacks=[taken], **weights, **options)
    best = load_checkpoint(source)["model"]
    for name, value in taken.state.items():
        expected = best if part_of(name) in ("backbone", "encoder") else without.state
        assert torch.equal(value, expected[name]), name
    output = capsys.readouterr().out
    assert "backbone: loaded" in output
    assert "decoder, queries, heads: not taken" in output
    with pytest.raises(UsageError, match="weights-of has no effect on a run that is resumed"):
        groupdetr.train(resume=run.path, weights_of="decoder")


def test_parts_without_weights_and_unknown_parts_are_refused(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no --weights are given"):
        groupdetr.train(shapes, model="dino-tiny", weights_of=PARTS[:1], out=tmp_path / "run")
    with pytest.raises(UsageError, match="no part of a detector"):
        groupdetr.train(shapes, weights=tmp_path, weights_of="neck", out=tmp_path / "run")  # type: ignore[arg-type]
