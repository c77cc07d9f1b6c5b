"""The sections of a page that show what a detector misses, makes up and confuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from groupdetr.console.text import quantity
from groupdetr.evaluation.error_analysis import (
    RECALLS,
    ClassCurve,
    Confusion,
    DrawnBox,
    ErrorAnalysis,
    ImageErrors,
)
from groupdetr.report.chart import Chart, Series, charts
from groupdetr.report.page import (
    CaptionedImage,
    Cell,
    Column,
    Html,
    Tile,
    escape,
    gallery,
    join,
    prose,
    section,
    swatches,
    table,
)
from groupdetr.visualize.images import Colour, draw_boxes, scale_for

CLASSES_PER_CHART = 6  # with the mean, as many lines as there are colours
MAX_CURVES = 60  # classes whose curve is shown
MAX_MATRIX = 20  # classes of a matrix; with more, the most frequent confusions are listed
MAX_LISTED = 25  # confusions
BACKGROUND = "background"
# Colours that are told apart with every kind of colour vision.
MISSED: Colour = (213, 94, 0)
MADE_UP: Colour = (0, 114, 178)
DETECTED: Colour = (255, 255, 255)


def error_sections(
    errors: ErrorAnalysis, load_image: Callable[[ImageErrors], Image.Image | None]
) -> list[Html]:
    """Return the sections with curves, confusions and the worst images.

    ``load_image`` returns an image, or None if it is not there any more.
    """
    return [
        curve_section(errors),
        confusion_section(errors),
        *worst_image_sections(errors, load_image),
    ]


def threshold_tile(errors: ErrorAnalysis | None) -> list[Tile]:
    """Return the tile of the best F1 and its score threshold, if there is one."""
    if errors is None or errors.best_f1 is None:
        return []
    best = errors.best_f1
    note = f"precision {100 * best.precision:.0f} %, recall {100 * best.recall:.0f} %"
    return [Tile(f"Best F1, at score {best.score:.2f}", f"{100 * best.F1:.1f}", note=note)]


def curve_section(errors: ErrorAnalysis) -> Html:
    """Return the precision-recall curves of all classes, the most frequent classes first."""
    by_frequency = sorted(errors.curves, key=lambda curve: -curve.objects)
    shown = by_frequency[:MAX_CURVES]
    mean = np.mean([curve.precision for curve in errors.curves], axis=0).tolist()
    items = []
    for start in range(0, len(shown), CLASSES_PER_CHART):
        of_chart = shown[start : start + CLASSES_PER_CHART]
        lines = [_curve(curve) for curve in of_chart]
        if start == 0 and len(errors.curves) > 1:
            lines.append(_line("mean of all classes", mean))
        last = start + len(of_chart)
        is_one_chart = len(shown) <= CLASSES_PER_CHART
        title = "Precision by recall" + ("" if is_one_chart else f", classes {start + 1} to {last}")
        items.append(
            Chart(title, "recall", "precision", lines, legend=True, cover=((0, 0), (1, 1)))
        )
    text = (
        "Precision of each class at each recall, at an IoU of 0.5. The mean of a curve is the AP50 "
        "of its class. A curve ends at the highest recall that the detector reaches."
    )
    if len(by_frequency) > len(shown):
        text += f" The {len(shown)} classes with the most objects are shown."
    return section("Precision and recall", prose(text), charts(items))


def _curve(curve: ClassCurve) -> Series:
    return _line(f"{curve.name} ({np.mean(curve.precision) * 100:.1f})", curve.precision)


def _line(name: str, precision: Sequence[float]) -> Series:
    """Return a line that ends where the recall is not reached any more."""
    values = [value if value > 0 else math.nan for value in precision]
    return Series(name, RECALLS.tolist(), values)


def confusion_section(errors: ErrorAnalysis) -> Html:
    """Return the confusion matrix, or a list of the most frequent confusions of many classes."""
    text = (
        f"Detections with a score of at least {errors.threshold:.2f}, "
        f"{'the best F1' if errors.best_f1 else 'because no threshold is the best'}, at an IoU of "
        "0.5. A row is the class of an object, and a column is what it is detected as. The column "
        f"{BACKGROUND} counts objects that are missed, the row {BACKGROUND} detections that are "
        "made up."
    )
    names = _class_names(errors)
    if len(names) > MAX_MATRIX:
        return section("Confusions", prose(text), _confusion_list(errors.confusions))
    return section("Confusions", prose(text), _matrix(names, errors.confusions))


def _class_names(errors: ErrorAnalysis) -> list[str]:
    """Return the classes that have objects or detections, those of the curves first."""
    names = dict.fromkeys(curve.name for curve in errors.curves)
    for confusion in errors.confusions:
        for name in (confusion.object, confusion.detection):
            if name is not None:
                names.setdefault(name)
    return list(names)


def _matrix(names: Sequence[str], confusions: Sequence[Confusion]) -> Html:
    """Return a table whose cells are the darker, the larger their share of the row is."""
    counts = {(row.object, row.detection): row.count for row in confusions}
    labels: list[str | None] = [*names, None]
    head = "".join(
        f'<th scope="col" class="n">{escape(BACKGROUND if name is None else name)}</th>'
        for name in labels
    )
    rows = []
    for object_name in labels:
        total = sum(counts.get((object_name, name), 0) for name in labels) or 1
        cells = []
        for name in labels:
            if object_name is None and name is None:
                cells.append('<td class="n"></td>')
                continue
            count = counts.get((object_name, name), 0)
            good = " good" if name == object_name else ""
            style = f' style="--share:{100 * count / total:.0f}%"' if count else ""
            text = f"{count:,}" if count else "·"
            cells.append(f'<td class="n{good}"{style}>{text}</td>')
        row_name = escape(BACKGROUND if object_name is None else object_name)
        rows.append(f'<tr><th scope="row">{row_name}</th>{"".join(cells)}</tr>')
    caption = "Objects by their class (rows) and what they are detected as (columns)."
    content = (
        f"<caption>{escape(caption)}</caption>\n"
        f'<thead><tr><th scope="col">object</th>{head}</tr></thead>\n'
        f"<tbody>\n{join(Html(row) for row in rows)}\n</tbody>"
    )
    return Html(f'<div class="scroll"><table class="matrix">{content}</table></div>')


def _confusion_list(confusions: Sequence[Confusion]) -> Html:
    errors = [row for row in confusions if row.object != row.detection]
    rows: list[list[Cell]] = []
    for row in sorted(errors, key=lambda row: -row.count)[:MAX_LISTED]:
        rows.append([row.object or BACKGROUND, row.detection or BACKGROUND, row.count])
    columns = [Column("object"), Column("detected as"), Column("number", 0)]
    return table(columns, rows, "The most frequent errors.")


def worst_image_sections(
    errors: ErrorAnalysis, load_image: Callable[[ImageErrors], Image.Image | None]
) -> list[Html]:
    """Return the section with the images that have the most errors; none if there is no error."""
    images = []
    for of_image in errors.worst_images:
        image = load_image(of_image)
        if image is not None:
            caption = f"{len(of_image.missed)} missed, {len(of_image.made_up)} made up, "
            caption += f"{quantity(len(of_image.detected), 'object')} detected"
            images.append(CaptionedImage(draw_errors(image, of_image), of_image.file_name, caption))
    if not images:
        return []
    text = (
        "The validation images with the most errors, at the score threshold of the confusions. An "
        "object that is detected as another class is missed, and its detection is made up."
    )
    colours = [("missed", MISSED), ("made up", MADE_UP), ("detected", DETECTED)]
    legend = swatches([(f"rgb{colour}", name) for name, colour in colours])
    return [section("Worst images", prose(text), legend, gallery(images))]


def draw_errors(image: Image.Image, errors: ImageErrors) -> Image.Image:
    """Return a copy of an image with its objects that are missed and its detections."""
    boxes: list[DrawnBox] = [*errors.missed, *errors.made_up, *errors.detected]
    colours = [MISSED] * len(errors.missed) + [MADE_UP] * len(errors.made_up)
    colours += [DETECTED] * len(errors.detected)
    captions = [row.name for row in errors.missed]
    captions += [f"{row.name} {row.score:.2f}" for row in errors.made_up]
    captions += [""] * len(errors.detected)
    corners = np.array([row.box for row in boxes], dtype=float).reshape(-1, 4)
    return draw_boxes(image, corners, captions, colours, scale_for(image))
