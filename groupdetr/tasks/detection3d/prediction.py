"""The users' face for scenes: a trained detector that takes samples of a nuScenes version and gives boxes in space."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from groupdetr.cli.options.predict import Options
from groupdetr.data.images import load_image
from groupdetr.data.nuscenes.dataset import Views
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.data.nuscenes.samples import Sample
from groupdetr.data.nuscenes.version import load
from groupdetr.engine.run_folder import own_data, write_json
from groupdetr.errors import DataError, UsageError, unread
from groupdetr.evaluation.nuscenes_results import to_results
from groupdetr.tasks.detection2d.prediction import Trained
from groupdetr.tasks.detection3d.task import Found, in_the_world, learned
from groupdetr.visualize.scenes import Solids, draw_scene

SCORE = 0.3  # the least that is reported unless told


@dataclass
class SceneResult:
    """What was found in one sample, by falling score, in the frame of its lidar."""

    sample: Sample
    found: Found

    @property
    def boxes(self) -> np.ndarray:
        """[D,9] x, y, z, width, length, height in metres, yaw in radians, velocity x, y in metres a second."""
        return self.found.boxes.numpy()

    @property
    def scores(self) -> np.ndarray:
        return self.found.scores.numpy()

    @property
    def labels(self) -> np.ndarray:
        """[D] of the ten classes."""
        return self.found.labels.numpy()

    @property
    def names(self) -> list[str]:
        return [CLASSES[label] for label in self.labels]

    @property
    def truth(self) -> Found:
        """What is annotated and can be learned; nothing in a version without annotations."""
        return learned(self.sample)

    def __len__(self) -> int:
        return len(self.found)

    def best(self, number: int) -> SceneResult:
        return replace(self, found=self.found[:number])

    def draw(self, width: int = 640) -> Image.Image:
        """The six pictures, each ``width`` pixels wide, and the scene from above; what is annotated is white."""
        frame, truth = self.sample.frame(), self.truth
        captions = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores)]
        pictures = [load_image(path) for path in frame.paths]
        seen = Solids(self.boxes, self.labels, captions)
        return draw_scene(
            pictures, frame.lidar_to_image, seen, Solids(truth.boxes.numpy()), CLASSES, width
        )

    def save(self, path: str | Path) -> None:
        """Write the annotated pictures as one."""
        self.draw().save(path)


class SceneDetector(Trained):
    """A detector of objects in space, ready to predict: a run's best weights, or a weights file of this library.

    ``device``: auto, cpu, cuda, mps. ``imgsz``: height of the pictures the network sees, the run's own by default.
    """

    sees: ClassVar[str | None] = "scenes"

    def predict(
        self, data: str | Path, split: str = "val", score: float = SCORE, limit: int | None = None
    ) -> list[SceneResult]:
        """What is in samples of a nuScenes version, with a score of at least ``score``: all of a split, or ``limit``
        that are evenly spread over it."""
        samples = self.samples(data, split)
        return [self.look(samples, index, score) for index in spread(len(samples), limit)]

    def samples(self, data: str | Path, split: str = "val") -> Views:
        """Those of a split, as the network sees them."""
        views: Views = self.task.seen(load(data, split).splits["val"], self.imgsz)
        return views

    @torch.inference_mode()
    def look(self, samples: Views, index: int, score: float = SCORE) -> SceneResult:
        """What is in one of `samples`."""
        images = samples.collate([samples[index]]).images(self.device)
        (found,) = self.task.found(self.model(images).answer, self.recipe.num_detections)
        return SceneResult(samples.samples[index], found.above(score))


def spread(count: int, limit: int | None) -> list[int]:
    """Indices of at most ``limit`` of ``count`` things, the first among them, evenly apart."""
    few = count if limit is None else min(limit, count)
    return [place * count // few for place in range(few)]


def predict(options: Options) -> None:
    """Write a picture for each sample, and predictions.json, which the devkit of nuScenes reads."""
    if options.limit is not None and options.limit < 1:
        raise UsageError(
            f"--limit {options.limit} leaves nothing to look at",
            remedy="--limit 1 or more, or none",
        )
    detector = SceneDetector(options.run_, options.device, options.imgsz)
    samples = detector.samples(folder_of(options), options.split)
    indices = spread(len(samples), options.limit)
    options.folder.mkdir(parents=True, exist_ok=True)
    done, failed = [], []
    for index in track(indices, "predict", transient=True, disable=options.json):
        try:
            result = detector.look(
                samples, index, SCORE if options.score is None else options.score
            )
        except DataError as error:
            failed.append(error)
            continue
        result.save(options.folder / f"{result.sample.scene}-{result.sample.token}.jpg")
        done.append(result)
        if not options.json:
            tell(result)
    content = written(done)
    write_json(options.folder / "predictions.json", content)
    about = f"{len(done)} samples, annotated, and predictions.json: {options.folder}"
    print(json.dumps(content, indent=1) if options.json else about)
    if failed:
        raise unread(failed, len(indices), "samples")


def folder_of(options: Options) -> Path:
    """The data that is given, or that of the run."""
    missing = [name for name in options.pictures if not Path(name).exists()]
    if missing:
        raise UsageError(
            "there is no such folder", missing[0], "pass the folder of one nuScenes version"
        )
    if len(options.pictures) > 1 or any(not Path(name).is_dir() for name in options.pictures):
        what = "this detector sees scenes of six cameras, not single pictures"
        raise UsageError(what, options.pictures[0], "pass the folder of one nuScenes version")
    if options.pictures:
        return Path(options.pictures[0])
    return own_data(options.run_, f"groupdetr predict {options.run_} NUSCENES")[0]


def written(results: Sequence[SceneResult]) -> dict[str, Any]:
    """As the result file of the nuScenes detection challenge, with these samples alone."""
    world = [in_the_world(result.found, result.sample) for result in results]
    return to_results([result.sample.token for result in results], world)


def tell(result: SceneResult) -> None:
    counts = (
        ", ".join(f"{result.names.count(name)} {name}" for name in dict.fromkeys(result.names))
        or "nothing"
    )
    print(f"{result.sample.scene} {result.sample.token}: {counts}")
