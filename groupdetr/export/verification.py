"""Comparison of an exported detector with PyTorch: the same images through both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from groupdetr.data.image_input import ImageInput, to_rgb
from groupdetr.export.exported_detector import ExportedDetector
from groupdetr.export.graph import DetectionGraph
from groupdetr.export.runtimes import Outputs, Runtime
from groupdetr.structures.detections import Detections

MAX_SCORE_DIFFERENCE = 1e-4
MAX_PIXELS = 0.5  # that a box may move
# With 16 bits, scores have three decimals.
MAX_SCORE_DIFFERENCE_HALF, MAX_PIXELS_HALF = 2e-2, 4.0
MIN_SCORE = 0.01  # boxes with a lower score are not compared
_TIMED_RUNS = 5


@dataclass(frozen=True)
class Agreement:
    """How far an exported detector is from PyTorch, on some images."""

    images: int
    detections: int  # that were compared
    score: float  # the largest difference of scores
    pixels: float  # the largest difference of a box's edge, in pixels of the image
    milliseconds: float  # of the exported detector, for one image
    torch_milliseconds: float


def torch_runtime(graph: DetectionGraph) -> Runtime:
    """Return the graph itself as a runtime."""

    def run(images: NDArray[np.float32]) -> Outputs:
        with torch.inference_mode():
            values = graph(torch.from_numpy(images))
        return {name: value.numpy() for name, value in zip(graph.outputs, values)}

    return run


def compare(
    exported: ExportedDetector, reference: ExportedDetector, images: Sequence[ImageInput]
) -> Agreement:
    """Return how far two detectors are from each other on these images.

    Detections of both are compared in the order of their scores. A box is compared with the nearest
    one of the same class, because detections of nearly equal scores may change places.
    """
    scores, pixels, count = 0.0, 0.0, 0
    for image in images:
        ours, theirs = exported.predict(image), reference.predict(image)
        scores = max(scores, float((ours.scores - theirs.scores).abs().max()))
        # The last detections of equal scores may differ, and so may the order of equal ones.
        compared = theirs.above(max(MIN_SCORE, float(theirs.scores[-1]) + 1e-3))
        count += len(compared)
        pixels = max(pixels, _largest_distance(compared, ours))
    example = exported.input_of(to_rgb(images[0]))
    return Agreement(
        len(images),
        count,
        scores,
        pixels,
        _milliseconds(lambda: exported.runtime(example)),
        _milliseconds(lambda: reference.runtime(example)),
    )


def _largest_distance(detections: Detections, others: Detections) -> float:
    """Return the largest distance of a box to the nearest one of the same class and score."""
    largest = 0.0
    for box, label, score in zip(detections.boxes, detections.labels, detections.scores):
        is_candidate = (others.labels == label) & ((others.scores - score).abs() < 0.05)
        distances = (others.boxes[is_candidate] - box).abs().amax(1)
        largest = max(largest, float(distances.min()) if len(distances) else float("inf"))
    return largest


def _milliseconds(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)
