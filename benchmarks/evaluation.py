"""What COCO's metrics cost, by each evaluator, and a whole evaluation as the training runs it.

    python benchmarks/evaluation.py [--images 1000] [--rounds 3]

Images have 7.3 objects of 80 classes, as COCO's, and 300 detections. Each evaluator gets the same
annotations and detections in memory. hotcoco and ultrafast-pycocotools are left out if they are not
installed. "error" is the largest difference to a metric of pycocotools. "whole evaluation" is what
a training does after it has gathered the detections, with the evaluator that is installed and with
the analysis of the errors. Times are process time of all threads.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from groupdetr.data.records import Category, CocoSplit, Record
from groupdetr.evaluation import coco
from groupdetr.evaluation.error_analysis import analyse_errors
from groupdetr.structures.detections import Detections

NUM_CLASSES = 80
OBJECTS = 7.3  # of an image, as in COCO
REFERENCE = "pycocotools"


@dataclass
class Options:
    images: int = 1000
    detections: int = 300  # in an image
    rounds: int = 3
    seed: int = 0
    quick: bool = False  # fewer images and rounds
    out: Path | None = None  # JSON


QUICK = {"images": 50, "rounds": 1}


def draw_image(index: int, count: int, generator: np.random.Generator) -> tuple[Record, Detections]:
    """Return an image with random objects, and ``count`` detections, a third of them near one."""
    num_objects = int(generator.poisson(OBJECTS))
    boxes = draw_boxes(num_objects, generator)
    labels = generator.integers(0, NUM_CLASSES, num_objects)
    record = Record(
        index + 1,
        Path(f"{index}.jpg"),
        f"{index}.jpg",
        640,
        480,
        boxes,
        labels,
        boxes[:, 2:].prod(axis=1) * 0.6,
        generator.random(num_objects) < 0.01,
        tuple(range(num_objects)),
    )
    detected, classes = draw_boxes(count, generator), generator.integers(0, NUM_CLASSES, count)
    is_near = (generator.random(count) < 0.3) & (num_objects > 0)
    scores = np.where(is_near, generator.beta(3, 3, count), generator.beta(1, 8, count))
    if num_objects:
        objects = generator.integers(0, num_objects, count)[is_near]
        detected[is_near] = boxes[objects] + generator.normal(0, 4, (len(objects), 4))
        classes[is_near] = labels[objects]
    detected[:, 2:] = detected[:, 2:].clip(1) + detected[:, :2]
    order = np.argsort(-scores, kind="stable")
    detections = Detections(
        torch.from_numpy(scores[order]).float(),
        torch.from_numpy(classes[order]),
        torch.from_numpy(detected[order]).float(),
    )
    return record, detections


def draw_boxes(count: int, generator: np.random.Generator) -> np.ndarray:
    """Return random boxes x, y, width, height in an image of 640 x 480, [count,4]."""
    corner = generator.random((count, 2)) * (500, 340)
    return np.concatenate([corner, generator.random((count, 2)) ** 2 * 180 + 4], axis=1)


def by_class(coco_class: type, evaluator_class: type, truth: Any, results: Any) -> list[float]:
    """Return the twelve metrics by classes that are used as those of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = coco_class()
        dataset.dataset = copy.deepcopy(truth)  # loadRes of some changes it
        dataset.createIndex()
        evaluator = evaluator_class(dataset, dataset.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(value) for value in evaluator.stats]


def evaluators(truth: Any, results: Any) -> dict[str, Callable[[], list[float]]]:
    """Return a function for each evaluator that is installed; it returns the twelve metrics."""
    categories = list(range(1, NUM_CLASSES + 1))

    def ours(run: Callable[..., Any]) -> list[float]:
        return list(run(truth, results, categories, "bbox").stats().values())

    named = {
        REFERENCE: lambda: by_class(COCO, COCOeval, truth, results),
        "faster-coco-eval": lambda: ours(coco._by_faster_coco_eval),
    }
    if find_spec("hotcoco"):
        named["hotcoco"] = lambda: ours(coco._by_hotcoco)
    if find_spec("ultrafast_pycocotools"):
        from ultrafast_pycocotools.coco import COCO as FastCOCO
        from ultrafast_pycocotools.cocoeval import COCOeval as FastCOCOeval

        named["ultrafast-pycocotools"] = lambda: by_class(FastCOCO, FastCOCOeval, truth, results)
    return named


def main(options: Options) -> None:
    generator = np.random.default_rng(options.seed)
    images = [draw_image(i, options.detections, generator) for i in range(options.images)]
    categories = tuple(Category(i + 1, f"class {i + 1}") for i in range(NUM_CLASSES))
    records = tuple(record for record, _ in images)
    split = CocoSplit("val", Path("val.json"), Path(), categories, records)
    detections = [of_image for _, of_image in images]
    numbers = list(range(1, len(records) + 1))
    truth = coco._ground_truth(split, numbers, with_masks=False)
    named = evaluators(truth, coco._box_results(detections, numbers))
    metrics = {name: np.array(run()) for name, run in named.items()}
    runs = {name: measure.timed(run) for name, run in named.items()}
    runs["whole evaluation: metrics"] = measure.timed(lambda: coco.evaluate(split, detections))
    runs["whole evaluation: errors"] = measure.timed(lambda: analyse_errors(split, detections))
    timings = measure.time_interleaved(runs, options.rounds)
    rows: dict[str, dict[str, Any]] = {}
    for name in runs:
        rows[name] = {"CPU, s": timings.ms(name) / 1000}
        if name in metrics:
            rows[name]["speed-up"] = timings.speed_up(name, over=REFERENCE)
            rows[name]["error"] = float(np.abs(metrics[name] - metrics[REFERENCE]).max())
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
