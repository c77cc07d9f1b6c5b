"""Comparison of an exported detector with PyTorch: the same images through both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from groupdetr.data.image_input import ImageInput, to_rgb
from groupdetr.data.nuscenes.dataset import SceneBatch
from groupdetr.deployment.exported_detector import ExportedDetector
from groupdetr.deployment.exported_scene_detector import ExportedSceneDetector
from groupdetr.deployment.graph import DetectionGraph
from groupdetr.deployment.runtimes import Outputs, Runtime
from groupdetr.structures.detections import Detections, decode_mask
from groupdetr.structures.detections3d import Detections3D

MIN_SCORE = 0.01  # boxes and masks of detections with a lower score are not compared
NEAR_SCORE = 0.05  # detections of scores that differ by more are never the same
YAW = 6  # index of the yaw in a 3D box
_TIMED_RUNS = 5
_MAX_TIMED_SECONDS = 10.0  # after which a slow runtime is not timed again
# Noise on an image, of values from 0 to 255, that has the size of rounding in float32. It is drawn
# several times: a decision between two nearly equal proposals changes in about half of the draws.
_NOISE = 1e-3
_NOISE_DRAWS = 8


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that rounding may cause."""

    score: float
    pixels: float  # that an edge of a box may move
    mask: float  # share of the pixels of all masks that may differ
    box3d: float = 0.01  # of a number of a 3D box, in metres, radians or metres per second


TOLERANCE = Tolerance(score=1e-4, pixels=0.5, mask=1e-3)
# Numbers of 16 bits have three decimals.
TOLERANCE_HALF = Tolerance(score=2e-2, pixels=4.0, mask=3e-2)


@dataclass(frozen=True)
class Agreement:
    """How far an exported detector is from PyTorch, on some images."""

    images: int
    # Images that were left out, because rounding changes the detections of PyTorch itself as much:
    # a two-stage detector chose another one of two nearly equal proposals.
    unstable: int
    # whose boxes or masks were compared; all of them if all scores are nearly equal
    detections: int
    score: float  # the largest difference of scores
    # the largest difference of a box's edge, in pixels of the image; None for masks alone
    pixels: float | None
    # the share of the pixels of all masks that differ; None for boxes alone
    mask: float | None
    milliseconds: float  # of the exported detector, for one image
    torch_milliseconds: float
    # the largest difference of a number of a 3D box, in metres, radians or metres per second; None
    # for detectors of images
    box3d: float | None = None

    def is_within(self, tolerance: Tolerance) -> bool:
        """Return whether no difference is larger than the tolerance."""
        return (
            # A file that is wrong is not excused by images on which PyTorch is unstable.
            2 * self.unstable <= self.images
            and self.score <= tolerance.score
            and (self.pixels or 0.0) <= tolerance.pixels
            and (self.mask or 0.0) <= tolerance.mask
            and (self.box3d or 0.0) <= tolerance.box3d
        )


def torch_runtime(graph: DetectionGraph) -> Runtime:
    """Return the graph itself as a runtime."""

    def run(*inputs: NDArray[np.float32]) -> Outputs:
        with torch.inference_mode():
            values = graph(*map(torch.from_numpy, inputs))
        return {name: value.numpy() for name, value in zip(graph.outputs, values)}

    return run


def compare(
    exported: ExportedDetector,
    reference: ExportedDetector,
    images: Sequence[ImageInput],
    dynamic_batch: bool,
    tolerance: Tolerance,
) -> Agreement:
    """Return how far two detectors are from each other on these images.

    With ``dynamic_batch``, the first image is also detected in as a batch of three.

    Detections of both are compared in the order of their scores. A box or mask is compared with the
    nearest one of the same class, because detections of nearly equal scores may change places.
    Images are left out where the reference itself changes by more than the tolerance if its input
    is changed by as little as rounding does.
    """
    outputs = exported.metadata["outputs"]
    has_boxes, has_masks = "boxes" in outputs, "mask_logits" in outputs
    total = _Difference()
    unstable = 0
    for image in images:
        expected = reference.detect(image)
        difference = _difference(exported.detect(image), expected, has_boxes)
        if not difference.is_within(tolerance) and _is_unstable(
            reference, image, tolerance, has_boxes
        ):
            unstable += 1
            continue
        total = total.joined(difference)
    if dynamic_batch:
        for ours, theirs in _in_batch(exported, images[0]):
            total = total.joined(_difference(ours, theirs, has_boxes))
    example = exported.input_of(to_rgb(images[0]))
    return Agreement(
        images=len(images),
        unstable=unstable,
        detections=total.detections,
        score=total.score,
        pixels=total.pixels if has_boxes else None,
        mask=total.mask if has_masks else None,
        milliseconds=median_milliseconds(lambda: exported.runtime(example)),
        torch_milliseconds=median_milliseconds(lambda: reference.runtime(example)),
    )


def compare_scenes(
    exported: ExportedSceneDetector,
    reference: ExportedSceneDetector,
    scenes: Sequence[SceneBatch],
    dynamic_batch: bool,
) -> Agreement:
    """Return how far two detectors of scenes are from each other on these scenes.

    Detections are compared as in `compare`. With ``dynamic_batch``, so are those of a batch of
    three scenes.
    """
    pairs = [(exported.predict(scene), reference.predict(scene)) for scene in scenes]
    if dynamic_batch:
        chosen = [scenes[0], scenes[-1], scenes[0]]
        inputs = [np.concatenate(arrays) for arrays in zip(*map(exported.inputs_of, chosen))]
        outputs = exported.runtime(*inputs)
        for index in range(len(chosen)):
            of_scene = {name: value[index : index + 1] for name, value in outputs.items()}
            pairs.append((exported.detections(of_scene), reference.predict(chosen[index])))
    total = _Difference()
    for ours, theirs in pairs:
        total = total.joined(_difference_of_scenes(ours, theirs))
    example = exported.inputs_of(scenes[0])
    return Agreement(
        images=len(scenes),
        unstable=0,
        detections=total.detections,
        score=total.score,
        pixels=None,
        mask=None,
        milliseconds=median_milliseconds(lambda: exported.runtime(*example)),
        torch_milliseconds=median_milliseconds(lambda: reference.runtime(*example)),
        box3d=total.box3d,
    )


@dataclass(frozen=True)
class _Difference:
    """How far detections are from those of the reference."""

    detections: int = 0  # whose boxes or masks were compared
    score: float = 0.0
    pixels: float = 0.0  # of boxes
    box3d: float = 0.0  # of the numbers of 3D boxes
    differing_area: int = 0  # pixels of masks that differ
    area: int = 0  # pixels of all masks

    @property
    def mask(self) -> float:
        """The share of the pixels of all masks that differ."""
        return self.differing_area / max(1, self.area)

    def joined(self, other: _Difference) -> _Difference:
        """Return the difference in two sets of images."""
        return _Difference(
            self.detections + other.detections,
            max(self.score, other.score),
            max(self.pixels, other.pixels),
            max(self.box3d, other.box3d),
            self.differing_area + other.differing_area,
            self.area + other.area,
        )

    def is_within(self, tolerance: Tolerance) -> bool:
        """Return whether no difference is larger than the tolerance."""
        is_located = self.pixels <= tolerance.pixels and self.mask <= tolerance.mask
        return self.score <= tolerance.score and is_located


def _difference(ours: Detections, theirs: Detections, has_boxes: bool = True) -> _Difference:
    """Return how far the detections in one image are from those of the reference.

    Without ``has_boxes``, the boxes are those around the masks, and are not compared.
    """
    score = _largest_difference(ours, theirs)
    compared = theirs.above(_lowest_score(theirs))
    pixels = _box_difference(ours, theirs) if has_boxes else 0.0
    if theirs.masks is None:
        return _Difference(len(compared) or len(theirs), score, pixels)
    differing, area = _differing_pixels(compared, ours)
    return _Difference(len(compared), score, pixels=pixels, differing_area=differing, area=area)


def _difference_of_scenes(ours: Detections3D, theirs: Detections3D) -> _Difference:
    """Return how far the detections in one scene are from those of the reference."""
    score = _largest_difference(ours, theirs)
    if not len(ours) or not len(theirs):
        return _Difference(score=score)
    compared = theirs.above(_lowest_score(theirs))
    box3d = _box_difference(ours, theirs)
    return _Difference(len(compared) or len(theirs), score, box3d=box3d)


def _lowest_score(detections: Detections | Detections3D) -> float:
    """Return the score from which detections are compared one by one.

    The last detections of equal scores may differ, and so may the order of equal ones.
    """
    return max(MIN_SCORE, float(detections.scores[-1]) + 1e-3)


def _box_difference(ours: Detections | Detections3D, theirs: Detections | Detections3D) -> float:
    """Return the largest difference of boxes, infinity if one of them is not a number."""
    compared = theirs.above(_lowest_score(theirs))
    if len(compared):
        return max(_distances(compared, ours))
    if not len(theirs):
        return 0.0
    # All scores are nearly equal, or very low, as those of an untrained detector. Rounding decides
    # which of them are among the best, but most are in both.
    return statistics.median(_distances(theirs, ours))


def _is_unstable(
    reference: ExportedDetector, image: ImageInput, tolerance: Tolerance, has_boxes: bool
) -> bool:
    """Return whether rounding changes the detections of a detector by more than a tolerance."""
    rgb = to_rgb(image)
    pixels = reference.input_of(rgb)
    expected = reference.detect(rgb)
    generator = np.random.default_rng(0)
    for _ in range(_NOISE_DRAWS):
        noise = generator.uniform(-_NOISE, _NOISE, pixels.shape).astype(np.float32)
        outputs = reference.runtime(pixels + noise)
        changed = reference.detections(outputs, pixels.shape[2:], rgb.size)
        if not _difference(changed, expected, has_boxes).is_within(tolerance):
            return True
    return False


def _in_batch(
    exported: ExportedDetector, image: ImageInput
) -> Iterator[tuple[Detections, Detections]]:
    """Yield the detections of an image in a batch of three, and those of the image alone."""
    rgb = to_rgb(image)
    pixels = exported.input_of(rgb)
    # The flipped image shows that images of a batch do not depend on each other.
    outputs = exported.runtime(np.concatenate([pixels, pixels[..., ::-1], pixels]))
    alone = exported.detect(rgb)
    for index in (0, 2):
        of_image = {name: value[index : index + 1] for name, value in outputs.items()}
        yield exported.detections(of_image, pixels.shape[2:], rgb.size), alone


def _largest_difference(
    ours: Detections | Detections3D, theirs: Detections | Detections3D
) -> float:
    """Return the largest difference of scores, infinity for NaN or other numbers of detections."""
    if len(ours) != len(theirs):
        return float("inf")
    difference = (ours.scores - theirs.scores).abs().nan_to_num(float("inf"))
    return float(difference.max()) if len(ours) else 0.0


def _candidates(
    others: Detections | Detections3D, label: torch.Tensor, score: torch.Tensor
) -> torch.Tensor:
    """Return which detections may be the one with this label and score, [D] bool."""
    return (others.labels == label) & ((others.scores - score).abs() < NEAR_SCORE)


def _distances(
    detections: Detections | Detections3D, others: Detections | Detections3D
) -> list[float]:
    """Return the distance of each box to the nearest one of the same class and score.

    It is the largest difference of one of their numbers, infinity if there is no such box, or if a
    number is NaN.
    """
    nearest = []
    for box, label, score in zip(detections.boxes, detections.labels, detections.scores):
        difference = others.boxes[_candidates(others, label, score)] - box
        if isinstance(detections, Detections3D):
            yaw = difference[:, YAW]
            difference[:, YAW] = torch.atan2(yaw.sin(), yaw.cos())
        # A comparison with NaN is false, so NaN would never be the largest difference.
        distances = difference.abs().nan_to_num(float("inf")).amax(1)
        nearest.append(float(distances.min()) if len(distances) else float("inf"))
    return nearest


def _differing_pixels(detections: Detections, others: Detections) -> tuple[int, int]:
    """Return how many pixels of masks differ from the nearest mask, and the area of the masks."""
    assert detections.masks is not None
    assert others.masks is not None
    other_masks = [decode_mask(rle) for rle in others.masks]
    differing, total = 0, 0
    for rle, label, score in zip(detections.masks, detections.labels, detections.scores):
        mask = decode_mask(rle)
        area = int(mask.sum())
        candidates = _candidates(others, label, score).nonzero()[:, 0].tolist()
        differences = [int((mask ^ other_masks[i]).sum()) for i in candidates]
        # A mask without any counterpart differs in all of its pixels.
        differing += min(differences, default=area)
        total += area
    return differing, total


def median_milliseconds(run: Callable[[], object]) -> float:
    """Return the median time of a call, without that of the first one."""
    run()
    times: list[float] = []
    while len(times) < _TIMED_RUNS and sum(times) < _MAX_TIMED_SECONDS:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)
