"""The demo of detectors of images: its synthetic dataset, and sections of its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from groupdetr.analysis.matched_queries import matched_queries
from groupdetr.data.image_decoding import load_image
from groupdetr.data.synthetic import write
from groupdetr.evaluation.coco import BOX_METRICS, METRICS
from groupdetr.report.demo import ReportSubject
from groupdetr.report.page import Html, prose, section
from groupdetr.report.panels import DetectionPanel, GroupPanel, detection_strips, group_gallery
from groupdetr.tasks.demo_spec import DemoSpec
from groupdetr.tasks.detection2d.demo_data import DEMO_COUNTS, DEMO_DATA, DEMO_SETTINGS
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.report import detection_panel
from groupdetr.tasks.detection2d.task import DetectionTask

NUM_IMAGES = 6  # with detections
NUM_GROUP_IMAGES = 6  # with the matched queries of every group

# What the page shows of each query, by the kind of the task.
QUERY_DESCRIPTIONS = {
    "box": "the box and the reference point",
    "mask": "the box around the mask, and its centre,",
}


def write_data(folder: Path) -> None:
    """Write the synthetic dataset, unless the folder holds it already."""
    write(DEMO_DATA, folder, DEMO_COUNTS)


def subject(kind: str) -> ReportSubject:
    """Return what the page compares. ``kind`` is "box" or "mask"."""
    caption = f"COCO {kind} AP on the validation images, in percent, after the last epoch."
    return ReportSubject("synthetic images", (*METRICS[:6], *BOX_METRICS), caption)


def sections(data: Path, runs: Mapping[str, Path]) -> list[Html]:
    """Return the detections of all runs, and the matched queries of the last run."""
    detectors = {name: Detector(run, "cpu") for name, run in runs.items()}
    grouped = list(detectors.values())[-1]
    task = grouped.create_task(grouped.task.read(data, None))

    num_images = len(task.val)
    detection_panels = []
    for index in range(min(NUM_IMAGES, num_images)):
        detection_panels.append(detection_panel(task, detectors, index))
    group_panels = []
    for index in range(NUM_IMAGES, min(NUM_IMAGES + NUM_GROUP_IMAGES, num_images)):
        group_panels.append(group_panel(task, grouped, index))
    return [
        detections_section(detection_panels, grouped.names, task.kind),
        groups_section(group_panels, task.kind),
    ]


def detections_section(
    panels: Sequence[DetectionPanel], class_names: Sequence[str], kind: str
) -> Html:
    """Return the section that compares the detections of the runs."""
    text = (
        "These images were not used for training. For each detector, as many detections are drawn "
        "as the image has objects, those with the highest scores. A common score threshold would "
        "favour the detector with the higher scores. An object counts as detected if a detection "
        f"of its class overlaps it with a {kind} IoU of at least 0.5."
    )
    return section("Detections", prose(text), detection_strips(panels, class_names))


def groups_section(panels: Sequence[GroupPanel], kind: str) -> Html:
    """Return the section that shows, for some objects, the matched query of every group."""
    text = (
        f"For some objects (white), {QUERY_DESCRIPTIONS[kind]} of the query of each group that is "
        "matched to the object. As in the paper's Fig. 3, the queries of different groups attend "
        "to the same object from different positions, like augmentations of one query."
    )
    return section("One object and its query in every group", prose(text), group_gallery(panels))


def group_panel(task: DetectionTask, detector: Detector, index: int) -> GroupPanel:
    """Return validation image ``index`` with the queries that are matched to its objects."""
    matched = matched_queries(detector.model, detector.recipe.criterion(), task.val, index)
    record = task.val.records[index]
    image = load_image(record.path, (record.width, record.height))
    return GroupPanel(image, matched.boxes, matched.predicted_boxes, matched.points)


DEMO_SPEC = DemoSpec(
    write_data=write_data,
    num_train=DEMO_COUNTS["train"],
    config=DEMO_DATA,
    description=f"{DEMO_COUNTS['train']} training and {DEMO_COUNTS['val']} validation images",
    settings=DEMO_SETTINGS,
    subject=subject,
    sections=sections,
)
