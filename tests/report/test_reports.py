"""The pages of the demo and of a run, from plain data to a file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from groupdetr.evaluation.coco import BOX_FIGURES, FIGURES, ClassAP, Evaluation
from groupdetr.report.comparison import RunSummary, arms, gain
from groupdetr.report.demo import DemoResults, write_demo_report
from groupdetr.report.panels import DetectionPanel, GroupPanel, found
from groupdetr.report.run import RunReport, write_run_report
from groupdetr.structures.detections import Detections, encoded
from groupdetr.tasks.detection2d.pictures import queries_of_every_group, subject, what_they_find

from .checks import assert_self_contained

NAMES = ("circle", "<script>alert(1)</script>", 'a" onload="x')


def summary(groups: int, seed: int = 0, epochs: int = 4) -> RunSummary:
    """K groups take 1 + K/10 seconds an epoch and reach (10 + K) / 100."""
    ap, pace = (10 + groups + seed) / 100, 1 + groups / 10
    rows = [
        {
            "epoch": e,
            "step": 10 * e,
            "seconds": pace * e,
            "AP": ap * e / epochs,
            "AP50": ap,
            "loss": 1 / e,
            "lr": 1e-4,
        }
        | dict.fromkeys(("instability", "instability_groups"), 4 / e if e > 1 else math.nan)
        for e in range(1, epochs + 1)
    ]
    return RunSummary(
        groups, seed, epochs, pace * epochs, 100 + groups, dict.fromkeys(FIGURES, ap), rows
    )


def detections(*boxes: list[float], labels: list[int]) -> Detections:
    return Detections(
        torch.linspace(0.9, 0.1, len(boxes)),
        torch.tensor(labels),
        torch.tensor(boxes).reshape(-1, 4),
    )


def panel(names: tuple[str, ...] = ("K = 1", "K = 8")) -> DetectionPanel:
    truth = detections([2, 2, 20, 20], [30, 30, 60, 60], labels=[0, 1])
    return DetectionPanel(Image.new("RGB", (96, 64)), truth, dict.fromkeys(names, truth))


def group_panel() -> GroupPanel:
    box = np.array([[2.0, 2, 20, 20]])
    return GroupPanel(
        Image.new("L", (96, 64)),
        box,
        np.repeat(box[None], 8, axis=1),
        np.full((1, 8, 2), 9.0),
        NAMES[1],
    )


def demo_page(folder: Path, *runs: RunSummary, kind: str = "box", **parts: Any) -> str:
    write_demo_report(folder / "report.html", DemoResults(runs, subject(kind), **parts))
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert_self_contained(html)
    return html


def test_the_demo_page(tmp_path: Path) -> None:
    html = demo_page(
        *(tmp_path, summary(8), summary(1)),
        shown=[
            what_they_find([panel(), panel()], NAMES, "box"),
            queries_of_every_group([group_panel()], "box"),
        ],
        about={"Command": "groupdetr demo <&>"},
    )
    assert "8 groups of queries instead of 1: +7.0 AP" in html
    assert "<script" not in html
    assert "arXiv 2207.13085" in html
    assert html.count('src="data:image/jpeg;base64,') == 2 * 3 + 1
    assert "2 of 2 found" in html
    assert "groupdetr demo &lt;&amp;&gt;" in html
    assert "Instability of the matching" in html
    assert "nan" not in html


def test_several_seeds_and_several_numbers_of_groups(tmp_path: Path) -> None:
    runs = [summary(groups, seed) for groups in (1, 2, 4, 8) for seed in (0, 1, 2)]
    html = demo_page(tmp_path, *runs)
    assert 'class="band"' in html
    assert "on average over 3 seeds" in html


def test_figures_that_are_undefined_for_every_seed(tmp_path: Path) -> None:
    """As AP of large objects is where there are none."""
    runs = [summary(groups, seed) for groups in (1, 8) for seed in (0, 1, 2)]
    runs = [replace(run, metrics={**run.metrics, "AP_large": math.nan}) for run in runs]
    assert "nan" not in demo_page(tmp_path, *runs)


def test_a_demo_without_pictures_or_figures(tmp_path: Path) -> None:
    """A run stopped before its first evaluation still has a page."""
    empty = replace(summary(1), metrics={"AP": math.nan}, curve=[])
    assert "–" in demo_page(tmp_path, empty, replace(empty, groups=3))


def test_one_number_of_groups_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two of them"):
        demo_page(tmp_path, summary(1, 0), summary(1, 1))


def test_gains_are_taken_seed_by_seed() -> None:
    base, other = arms([summary(1, 1), summary(8, 1), summary(1, 0), summary(8, 0)])
    assert (base.groups, other.groups) == (1, 8)
    assert gain(base, other).mean == pytest.approx(7)
    assert gain(base, other).deviation == pytest.approx(0)
    assert base.metric("AP").deviation == pytest.approx(math.sqrt(0.5))


def test_equal_wall_time_compares_with_a_baseline_that_trained_longer(tmp_path: Path) -> None:
    longer = replace(
        summary(1, epochs=7), label="K = 1, longer", metrics=dict.fromkeys(FIGURES, 0.15)
    )
    html = demo_page(tmp_path, summary(8), summary(1), longer=[longer])
    assert "+3.0" in html, "18 points against 15"
    assert "K = 1, longer" in html
    assert "7 epochs" in html


def test_each_object_is_found_once() -> None:
    truth = detections([0, 0, 10, 10], [20, 20, 40, 40], labels=[0, 1])
    twice = detections([0, 0, 10, 10], [0, 0, 10, 9], labels=[0, 0])
    assert found(truth, truth) == 2
    assert found(truth, twice) == 1
    assert found(truth, detections([0, 0, 10, 10], labels=[1])) == 0
    assert found(truth, detections([0, 0, 10, 4], labels=[0])) == 0
    assert found(detections(labels=[]), truth) == 0


def test_an_object_with_a_mask_is_found_by_its_mask() -> None:
    square = np.zeros((2, 20, 20), dtype=bool)
    square[0, :10], square[1, :, :10] = True, True  # in one box they would be the same
    whole = detections([0, 0, 20, 20], labels=[0])
    above, beside = (replace(whole, masks=encoded(mask[None])) for mask in square)
    assert found(above, above) == found(beside, beside) == 1
    assert found(above, beside) == 0
    assert found(above, whole) == 1, "by boxes, where one has no mask"


def test_the_pages_say_of_what_ap_is(tmp_path: Path) -> None:
    """Of masks, with the boxes' own figures beside it."""
    runs = [
        replace(summary(k), metrics=dict.fromkeys((*FIGURES, *BOX_FIGURES), k / 10)) for k in (1, 8)
    ]
    shown = [
        what_they_find([panel()], NAMES, "mask"),
        queries_of_every_group([group_panel()], "mask"),
    ]
    masked = demo_page(tmp_path, *runs, shown=shown, kind="mask")
    assert "the box around the mask" in masked
    assert "COCO mask AP" in masked
    assert "a mask IoU of 0.5" in masked
    assert masked.count(">box AP75</th>") == 1
    boxes = demo_page(tmp_path, summary(1), summary(8))
    assert "COCO box AP" in boxes
    assert ">box AP75</th>" not in boxes
    evaluation = Evaluation(
        dict.fromkeys(FIGURES, 0.25) | dict.fromkeys(BOX_FIGURES, 0.321), [], "mask"
    )
    write_run_report(tmp_path / "run.html", RunReport("r", "d", summary(8), evaluation, NAMES))
    html = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert html.index("mask IoU") < html.index("box IoU")
    assert html.count("box IoU") == 1, "of recall there is none"
    assert "32.1" in html
    assert "nan" not in html


@pytest.mark.parametrize("panels", [(), (panel(("found",)),)])
def test_the_page_of_a_run(tmp_path: Path, panels: tuple[DetectionPanel, ...]) -> None:
    rows = [ClassAP(NAMES[1], math.nan, math.nan, 0, 0), ClassAP("circle", 0.5, 0.75, 3, 2)]
    evaluation = Evaluation(dict.fromkeys(FIGURES, 0.25) | {"AP_large": math.nan}, rows)
    report = RunReport(
        "<run>",
        "conditional-detr-tiny",
        summary(8),
        evaluation,
        NAMES,
        panels,
        {"images": 3},
        {"a": "b"},
    )
    write_run_report(tmp_path / "report.html", report)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert_self_contained(html)
    assert html.index(">circle<") < html.index("&lt;script&gt;"), "the best class first"
    assert "1e−4" in html, "the learning rate"
    assert "mean of groups: 2 at 2" in html, "instability, undefined at epoch 1"
    assert "nan" not in html


def test_a_run_without_curves_or_classes(tmp_path: Path) -> None:
    nothing = Evaluation(dict.fromkeys(FIGURES, math.nan), [])
    report = RunReport("r", "d", replace(summary(1), curve=[]), nothing, ())
    write_run_report(tmp_path / "r.html", report)
    assert_self_contained((tmp_path / "r.html").read_text(encoding="utf-8"))
