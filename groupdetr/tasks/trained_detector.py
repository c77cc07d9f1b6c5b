"""A trained detector of any task, built again from the folder of a run or from a weights file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch

from groupdetr.checkpoints import native
from groupdetr.engine.accelerator import expect_device
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.task import Task
from groupdetr.errors import UsageError
from groupdetr.registry import experiment, recipe_from_dict
from groupdetr.settings import Settings, expect_positive
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.registry import task_class
from groupdetr.weights.loading import load_weights

DEFAULT_IMGSZ = 800  # of weights files that do not record it


class TrainedDetector:
    """The best weights of a run, or a weights file of this library, as a model that can predict.

    ``device`` is auto, cpu, cuda or mps. ``imgsz`` is the shortest side of the network's input in
    pixels; None uses that of the training.
    """

    input_kind: ClassVar[str | None] = None  # "images" or "scenes"; None allows both

    task: type[Task]

    def __init__(self, source: str | Path, device: str = "auto", imgsz: int | None = None) -> None:
        self.path, metadata = weights_and_metadata(source)
        self.recipe = recipe_from_dict(metadata["recipe"], str(self.path))
        self.experiment = experiment(self.recipe.preset)
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
        for category_id, name in recorded:
            self.categories.append((category_id, name))

        self.imgsz = int(metadata.get("imgsz", DEFAULT_IMGSZ)) if imgsz is None else imgsz
        expect_positive(imgsz=self.imgsz)
        # A device may have an index, such as cuda:1.
        expect_device(device.partition(":")[0])
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)

        self.model = self.recipe.build()
        load_weights(self.model, self.path)
        self.model.to(self.device).eval()

    @property
    def names(self) -> list[str]:
        """The names of the classes."""
        return [name for _, name in self.categories]

    @property
    def settings(self) -> Settings:
        """The settings of the preset, for images of the size that the detector takes."""
        return replace(self.experiment.settings, imgsz=self.imgsz)


def weights_and_metadata(source: str | Path) -> tuple[Path, JsonObject]:
    """Return the weights file of a run, or the file itself, and its metadata.

    The metadata are the recipe, and, if they were recorded, categories and imgsz.
    """
    path = Path(source)
    if not path.exists():
        raise UsageError(
            "there is no such run or weights file",
            str(path),
            "pass a folder that `groupdetr train` wrote, or a .safetensors file of this library",
        )
    file = RunFolder.existing(path).best if path.is_dir() else path
    _, metadata = native.read(file)
    if "recipe" not in metadata:
        raise UsageError(
            "this file does not record which model it belongs to",
            str(file),
            "groupdetr import FILE --out NEW.safetensors",
        )
    return file, metadata


def task_of(source: str | Path) -> type[Task]:
    """Return the task that the detector of a run or of a weights file was trained for."""
    path, metadata = weights_and_metadata(source)
    recipe = recipe_from_dict(metadata["recipe"], str(path))
    return task_class(experiment(recipe.preset).task)


def _numbered_categories(num_classes: int) -> list[tuple[int, str]]:
    return [(index, f"class {index}") for index in range(num_classes)]
