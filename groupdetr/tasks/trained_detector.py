"""A trained detector of any task, built again from the folder of a run or from a weights file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch

from groupdetr.checkpoints import native
from groupdetr.checkpoints.metadata import UNTRUSTED
from groupdetr.console.text import quote
from groupdetr.data.transforms import InputShape
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.accelerator import expect_device
from groupdetr.engine.task import Task
from groupdetr.errors import UsageError, WeightsError
from groupdetr.experiments.experiment import Experiment
from groupdetr.registry import class_path, experiment, recipe_from_dict
from groupdetr.settings import RANGES, Settings, expect_whole_number
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.input_shape import input_shape
from groupdetr.tasks.registry import task_class
from groupdetr.tasks.run_or_weights import weights_of
from groupdetr.weights.file_fit import build_for_file
from groupdetr.weights.loading import load_weights

DEFAULT_IMGSZ = 800  # of weights files that do not record it


class TrainedDetector:
    """The best weights of a run, or a weights file of this library, as a model that can predict.

    ``device`` is auto, cpu, cuda or mps. ``imgsz`` is the shortest side of the network's input in
    pixels, or the side of a square; None uses that of the training.
    """

    input_kind: ClassVar[str | None] = None  # "images" or "scenes"; None allows both

    task: type[Task]

    def __init__(
        self,
        source: str | Path,
        device: str | torch.device = "auto",
        imgsz: int | None = None,
    ) -> None:
        self.path, metadata = weights_and_metadata(source)
        self.recipe, self.experiment = recipe_and_experiment(metadata, self.path)
        self.task = task_class(self.experiment.task)
        if self.input_kind not in (None, self.task.input_kind):
            raise UsageError(
                f"this detector was trained on {self.task.input_kind}, not on {self.input_kind}",
                str(self.path),
                "use groupdetr.Detector for images and groupdetr.SceneDetector for scenes",
            )

        # (id in the dataset, name) of every class, in the order of the classes
        self.categories: list[tuple[int | str, str]] = []
        recorded = metadata.get("categories") or _numbered_categories(self.recipe.num_classes)
        if len(recorded) != self.recipe.num_classes:
            raise WeightsError(
                f"the metadata of this file has {len(recorded)} categories for a model with "
                f"{self.recipe.num_classes} classes",
                str(self.path),
                UNTRUSTED,
            )
        for category_id, name in recorded:
            self.categories.append((category_id, name))

        self.imgsz = int(metadata.get("imgsz", DEFAULT_IMGSZ)) if imgsz is None else imgsz
        expect_whole_number("imgsz", self.imgsz, *RANGES["imgsz"])
        self.device = _device(str(device))

        self.model = build_for_file(self.recipe, self.path)
        load_weights(self.model, self.path)
        self.model.to(self.device).eval()

    @property
    def names(self) -> list[str]:
        """The names of the classes."""
        return [name for _, name in self.categories]

    @property
    def settings(self) -> Settings:
        """The settings of the preset, for images of the one size that the detector takes."""
        return replace(self.experiment.settings, imgsz=self.imgsz, multi_scale="off")

    @property
    def input_shape(self) -> InputShape:
        """What the network needs of the shape of its images."""
        return input_shape(self.recipe)


def _device(name: str) -> torch.device:
    """Return a device, which may have an index, such as cuda:1. `UsageError` if there is none."""
    kind, colon, index = name.partition(":")
    expect_device(kind)
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if colon and not (index.isdecimal() and int(index) < count):
        raise UsageError(
            f"this machine has no device {name!r}",
            remedy=f"choose an index from 0 to {count - 1}, or only {kind!r}",
        )
    return torch.device(name)


def weights_and_metadata(source: str | Path) -> tuple[Path, JsonObject]:
    """Return the weights file of a run, or the file itself, and its metadata.

    The metadata are the recipe, and, if they were recorded, categories and imgsz.
    """
    file = weights_of(source)
    metadata = native.read_metadata(file)
    if "recipe" not in metadata:
        raise UsageError(
            "this file does not record which model it belongs to",
            str(file),
            f"convert it first: groupdetr import {quote(file)} --out NEW.safetensors",
        )
    return file, metadata


def recipe_and_experiment(metadata: JsonObject, file: Path) -> tuple[Recipe, Experiment]:
    """Return the recipe in the metadata of a file, and the experiment that it names.

    `WeightsError` if either is unknown, or if they are not of the same model.
    """
    recipe = recipe_from_dict(metadata["recipe"], str(file))
    try:
        chosen = experiment(recipe.preset)
    except UsageError as error:
        raise WeightsError(error.what, str(file), error.remedy) from error
    is_from_outside = not type(recipe).__module__.startswith("groupdetr.")
    is_extended = is_from_outside and isinstance(recipe, type(chosen.recipe))
    if type(chosen.recipe) is not type(recipe) and not is_extended:
        raise WeightsError(
            f"the recipe in this file is of the class {class_path(type(recipe))}, and the model "
            f"{recipe.preset!r} of {class_path(type(chosen.recipe))}",
            str(file),
            "use the version of groupdetr, or of the plugin, that the file was written with",
        )
    return recipe, chosen


def task_of(source: str | Path) -> type[Task]:
    """Return the task that the detector of a run or of a weights file was trained for."""
    path, metadata = weights_and_metadata(source)
    _, chosen = recipe_and_experiment(metadata, path)
    return task_class(chosen.task)


def _numbered_categories(num_classes: int) -> list[tuple[int, str]]:
    return [(index, f"class {index}") for index in range(num_classes)]
