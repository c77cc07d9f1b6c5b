"""Sections of pages with images: what trainings detect, and the matched queries of every group."""

from __future__ import annotations

from collections.abc import Sequence

from groupdetr.paper.plan import Row
from groupdetr.paper.trainings import Store
from groupdetr.report.page import Html
from groupdetr.tasks.detection2d import comparison as comparison2d
from groupdetr.tasks.detection3d import comparison as comparison3d
from groupdetr.tasks.registry import task_class


def detection_sections(store: Store, rows: Sequence[Row]) -> list[Html]:
    """Return the section that compares what the first trainings of the rows detect.

    The last row is the one with groups.
    """
    first = rows[0].trainings[0]
    runs = {row.label: store.folder(row.trainings[0]) for row in rows}
    data = first.data.folder
    if task_class(first.experiment.task).input_kind == "scenes":
        return [comparison3d.detections_section(data, runs)]
    return [comparison2d.detections_section(data, runs)]


def matched_query_sections(store: Store, row: Row) -> list[Html]:
    """Return the section with the matched queries of every group (the paper's Fig. 3)."""
    training = row.trainings[0]
    run = store.folder(training)
    if task_class(training.experiment.task).input_kind == "scenes":
        return [comparison3d.groups_section(training.data.folder, run)]
    return [comparison2d.groups_section(training.data.folder, run)]
