"""Sections of pages that compare trained detectors of scenes: detections, and matched queries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from groupdetr.analysis.matched_queries import last_layer_matches
from groupdetr.console.text import quantity
from groupdetr.data.nuscenes.dataset import SceneDataset, collate
from groupdetr.evaluation.nuscenes import ERRORS
from groupdetr.modeling.heads import DETECTION_HIGH, DETECTION_LOW
from groupdetr.ops.boxes3d import decode_boxes3d
from groupdetr.report.page import CaptionedImage, Html, gallery, prose, section, wide
from groupdetr.report.panels import group_legend
from groupdetr.tasks.detection3d.prediction import SceneDetector, evenly_spaced_indices
from groupdetr.visualize.scenes import draw_groups_from_above

ERROR_METRICS = tuple(f"m{name}" for name in ERRORS)  # of which lower is better

NUM_SAMPLES = 2  # with detections, on the page
NUM_GROUP_SAMPLES = 3  # with the matched queries of every group
IMAGE_WIDTH = 480  # pixels of one camera's image on the page
NUM_GROUP_OBJECTS = 5  # objects of a sample whose matched queries are drawn


def detections_section(
    data: Path,
    runs: Mapping[str, Path],
    device: str = "auto",
    _images: Path | None = None,
    _cache: bool = False,
) -> Html:
    """Return the section that compares the detections of the runs."""
    text = (
        "These samples were not used for training. They are evenly spaced over the validation "
        "scenes. For each detector, as many boxes are drawn as there are objects (white), those "
        "with the highest scores. A common score threshold would favour the detector with the "
        "higher scores."
    )
    results = {}
    for name, run in runs.items():
        detector = SceneDetector(run, device)
        results[name] = detector.predict(data, score=0.0, limit=NUM_SAMPLES)
    images = []
    for same_sample in zip(*results.values()):
        for name, result in zip(results, same_sample):
            num_objects = len(result.truth)
            image = result.best(num_objects).draw(IMAGE_WIDTH)
            caption = f"{quantity(num_objects, 'object')}, {result.sample.scene}"
            images.append(CaptionedImage(image, name, caption))
    return section("Detections", prose(text), wide(images))


def groups_section(data: Path, run: Path) -> Html:
    """Return the section that shows, for some objects, the matched query of every group."""
    detector = SceneDetector(run, "cpu")
    samples = detector.samples(data)
    text = (
        "For some objects (white), from above, the predicted box and the reference point (a dot) "
        "of the query of each group that is matched to the object. As in the paper's Fig. 3, the "
        "queries of different groups attend to the same object from different positions, like "
        "augmentations of one query."
    )
    images = []
    for index in evenly_spaced_indices(len(samples), NUM_GROUP_SAMPLES):
        images.append(groups_image(detector, samples, index))
    legend = group_legend(detector.recipe.num_groups)
    return section("One object and its query in every group", prose(text), legend, gallery(images))


def groups_image(detector: SceneDetector, samples: SceneDataset, index: int) -> CaptionedImage:
    """Return a sample from above with the queries that are matched to some of its objects."""
    batch = collate([samples[index]])
    matches = last_layer_matches(detector.model, detector.recipe.criterion(), batch)
    objects = batch.targets[0].boxes
    # Reference points are in [0,1] of the space in which heads predict centres.
    low = matches.reference.new_tensor(DETECTION_LOW)
    high = matches.reference.new_tensor(DETECTION_HIGH)
    points = matches.reference * (high - low) + low
    boxes = decode_boxes3d(matches.predictions.boxes)
    boxes_by_object = matches.by_object(boxes, len(objects))  # [T,K,9]
    points_by_object = matches.by_object(points, len(objects))  # [T,K,3]
    shown = evenly_spaced_indices(len(objects), NUM_GROUP_OBJECTS)
    image = draw_groups_from_above(objects[shown], boxes_by_object[shown], points_by_object[shown])
    return CaptionedImage(image, samples.samples[index].scene)
