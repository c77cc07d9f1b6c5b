"""The sections of curves, confusions and worst images, from numbers to HTML."""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

from groupdetr.evaluation.error_analysis import (
    BestF1,
    ClassCurve,
    Confusion,
    DrawnBox,
    ErrorAnalysis,
    ImageErrors,
)
from groupdetr.report.errors import DETECTED, MADE_UP, MISSED, draw_errors, error_sections
from groupdetr.report.page import page

from .checks import assert_self_contained

UNSAFE = "<script>alert(1)</script>"


def image_errors(name: str = "a.jpg") -> ImageErrors:
    return ImageErrors(
        image_id=1,
        file_name=name,
        missed=[DrawnBox("cat", [10, 10, 40, 40])],
        made_up=[DrawnBox("dog", [60, 10, 90, 40], 0.75)],
        detected=[DrawnBox("cat", [10, 60, 40, 90], 0.9)],
    )


def analysis(num_classes: int) -> ErrorAnalysis:
    names = [UNSAFE, *(f"class {index}" for index in range(1, num_classes))]
    precision = [1.0] * 51 + [0.0] * 50
    curves = [ClassCurve(name, 100 - i, precision) for i, name in enumerate(names)]
    confusions = [Confusion(name, name, 30) for name in names]
    confusions += [Confusion(names[0], names[1], 7), Confusion(names[1], None, 5)]
    confusions += [Confusion(None, names[0], 1234)]
    return ErrorAnalysis(
        BestF1(0.371, 0.6, 0.5, 0.75), 0.371, curves, confusions, [image_errors(UNSAFE)]
    )


def written_page(errors: ErrorAnalysis, image: Image.Image | None) -> str:
    html = page("run", "title", "lead", error_sections(errors, lambda _: image))
    assert_self_contained(html)
    assert "<script" not in html
    assert "nan" not in html.split("</style>")[1]
    return html


def test_every_class_has_a_curve_that_ends_at_its_highest_recall() -> None:
    """Six classes share a chart, because there are colours for seven lines with the mean."""
    html = written_page(analysis(8), None)
    assert html.count("<svg") == 2
    assert html.count("<polyline") == 8 + 1
    assert "class 7 (50.5)" in html
    colours = re.findall(r"stroke:(var\(--s\d\))", html)
    assert len(set(colours[:7])) == 7
    # The axes reach from 0 to 1, though no curve does.
    assert ">1.0</text>" in html
    ends = [points.split()[-1] for points in re.findall(r'points="([^"]*)"', html)]
    assert len(set(ends)) == 1


def test_the_confusion_matrix_has_a_row_and_a_column_of_the_background() -> None:
    html = written_page(analysis(3), None)
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th>(.*?)</tr>', html)
    assert [name for name, _ in rows][1:] == ["class 1", "class 2", "background"]
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for _, row in rows]
    assert cells == [
        ["30", "7", "·", "·"],
        ["·", "30", "·", "5"],
        ["·", "·", "30", "·"],
        ["1,234", "·", "·", ""],
    ]
    assert '<div class="scroll"><table class="matrix">' in html


def test_many_classes_have_a_list_of_confusions_the_most_frequent_first() -> None:
    html = written_page(analysis(30), None)
    assert "matrix" not in html.split("</style>")[1]
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th><td>([^<]*)</td><td class="n">(.*?)<', html)
    assert [number for _, _, number in rows] == ["1,234", "7", "5"]
    assert rows[0][0] == rows[2][1] == "background"


def test_the_worst_images_are_drawn_and_those_that_are_gone_left_out() -> None:
    html = written_page(analysis(3), Image.new("RGB", (100, 100)))
    assert html.count('src="data:image/jpeg;base64,') == 1
    assert "1 missed, 1 made up, 1 object detected" in html
    assert "Worst images" not in written_page(analysis(3), None)


def test_what_is_missed_made_up_and_detected_has_its_colour() -> None:
    """At the lower edge of each box, where no label lies."""
    drawn = np.asarray(draw_errors(Image.new("RGB", (100, 100), (90, 90, 90)), image_errors()))
    scale = drawn.shape[0] // 100
    for point, colour in (((25, 40), MISSED), ((75, 40), MADE_UP), ((25, 90), DETECTED)):
        x, y = point[0] * scale, point[1] * scale
        near = drawn[y - 2 * scale : y + 2 * scale, x].reshape(-1, 3).tolist()
        assert list(colour) in near
