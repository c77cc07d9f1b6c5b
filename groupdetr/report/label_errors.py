"""The page of `groupdetr check DATA --with RUN`: probable errors in the annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupdetr.console.text import quantity
from groupdetr.engine.run_folder import write_text
from groupdetr.report.page import (
    CaptionedImage,
    Cell,
    Column,
    Html,
    Tile,
    gallery,
    page,
    prose,
    section,
    swatches,
    table,
    tiles,
)
from groupdetr.visualize.images import PAPER, Colour, DrawingCanvas, palette, scale_for

OTHERS: Colour = (110, 110, 110)
_MARGIN = 0.6  # of the shown region around a suspect, as a fraction of its longer side
_MIN_SIDE = 64.0  # pixels of the shown region


@dataclass(frozen=True)
class ShownSuspect:
    """A probable error, with its boxes in pixels of the image, x0, y0, x1, y1."""

    image: Image.Image
    caption: str
    box: Sequence[float] | None  # of the annotation; None if there is none
    others: NDArray[np.float64]  # [T,4] the other annotations of the image
    group_boxes: NDArray[np.float64]  # [K,4] what the groups detect; nan for those that do not


@dataclass(frozen=True)
class CheckedSplit:
    """One split whose annotations were checked."""

    name: str
    images: int
    annotations: int
    suspects: int
    trained_on: bool  # True if the detector was trained on these annotations


@dataclass(frozen=True)
class LabelErrorsReport:
    """Everything that the page shows."""

    name: str
    lead: str
    num_groups: int
    splits: Sequence[CheckedSplit]
    kinds: Counter[str]  # the number of suspects of each kind
    shown: Sequence[ShownSuspect]  # the most probable ones first


def write_label_errors_report(path: Path | str, report: LabelErrorsReport) -> None:
    """Write the page as one self-contained HTML file."""
    annotations = sum(split.annotations for split in report.splits)
    images = sum(split.images for split in report.splits)
    items = [
        Tile("Annotations", f"{annotations:,}", note=f"in {quantity(images, 'image')}"),
        Tile("Suspects", f"{report.kinds.total():,}", note="the most probable errors come first"),
    ]
    notes = {
        "no annotation": "an object is detected, and nothing is annotated",
        "no object": "an annotation where nothing is detected",
        "wrong class": "another class is detected",
        "wrong box": "an object of the class is detected beside it",
    }
    for kind, note in notes.items():
        items.append(Tile(kind.capitalize(), f"{report.kinds[kind]:,}", note=note))
    body = [tiles(items), _splits_section(report.splits), _suspects_section(report)]
    write_text(Path(path), page("groupdetr check", report.name, report.lead, body))


def _splits_section(splits: Sequence[CheckedSplit]) -> Html:
    text = (
        "All groups of the detector detect objects in these images, and what they agree on is "
        "compared with the annotations. A detector that was trained on the errors may repeat them, "
        "but it learns a few of them less well than the many right annotations."
    )
    columns = [
        Column("split"),
        Column("trained on it"),
        Column("images", 0),
        Column("annotations", 0),
        Column("suspects", 0),
    ]
    rows: list[list[Cell]] = []
    for split in splits:
        trained = "yes" if split.trained_on else "no"
        rows.append([split.name, trained, split.images, split.annotations, split.suspects])
    return section("What was checked", prose(text), table(columns, rows))


def _suspects_section(report: LabelErrorsReport) -> Html:
    """Return the section with the most probable errors."""
    if not report.shown:
        return section("Probable errors", prose("There is none."))
    text = (
        f"The {quantity(len(report.shown), 'most probable error')}, of "
        f"{report.kinds.total():,}. The annotation in question is white, other annotations are "
        "grey, and each group has a colour. label_errors.json lists all of them."
    )
    entries = [("#fff", "annotation"), (f"rgb{OTHERS}", "other annotations")]
    entries += [(f"rgb{palette(group)}", f"group {group}") for group in range(report.num_groups)]
    images = [
        CaptionedImage(draw_suspect(suspect), f"{rank}.", suspect.caption)
        for rank, suspect in enumerate(report.shown, 1)
    ]
    return section("Probable errors", prose(text), swatches(entries), gallery(images))


def draw_suspect(suspect: ShownSuspect) -> Image.Image:
    """Return the region of the image around a suspect, with all boxes."""
    own = [] if suspect.box is None else [suspect.box]
    corners = np.array([*own, *suspect.group_boxes], float).reshape(-1, 4)
    left, top, right, bottom = _region(corners, suspect.image.size)
    crop = suspect.image.crop((left, top, right, bottom))
    drawing = DrawingCanvas(crop, scale_for(crop, side=420))
    offset = np.array([left, top, left, top])
    thin = max(1, drawing.line_width // 2)
    for box in drawing.scaled(_visible(suspect.others - offset, crop.size), 4):
        drawing.draw_box(box, OTHERS, thin, edge=0)
    for box in own:
        drawing.draw_box(
            drawing.scaled(np.asarray(box) - offset, 4)[0], PAPER, drawing.line_width + thin
        )
    for group, box in enumerate(drawing.scaled(suspect.group_boxes - offset, 4)):
        drawing.draw_box(box, palette(group), thin, edge=0)
    return drawing.image


def _region(corners: NDArray[np.float64], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the region around boxes [B,4], those that are nan left out, inside of the image."""
    finite = corners[np.isfinite(corners).all(axis=1)]
    low, high = finite[:, :2].min(axis=0), finite[:, 2:].max(axis=0)
    side = max(_MIN_SIDE, float((high - low).max()))
    centre, half = (low + high) / 2, side * (0.5 + _MARGIN)
    # A box may reach outside of the image.
    limit = np.array(size)
    first = np.floor(np.clip(centre - half, 0, limit - 1)).astype(int)
    last = np.ceil(np.clip(centre + half, first + 1, limit)).astype(int)
    return int(first[0]), int(first[1]), int(last[0]), int(last[1])


def _visible(boxes: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Return the boxes [T,4] that overlap an image of a size."""
    width, height = size
    inside = (boxes[:, 2] > 0) & (boxes[:, 3] > 0) & (boxes[:, 0] < width) & (boxes[:, 1] < height)
    visible: NDArray[np.float64] = boxes[inside]
    return visible
