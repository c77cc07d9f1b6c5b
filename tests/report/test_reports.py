"""The pages of the demo and of a run, from numbers to HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from groupdetr.evaluation.coco import BOX_METRICS, METRICS, ClassAP, CocoEvaluation
from groupdetr.report.comparison import RunSummary, collect_seeds, gain
from groupdetr.report.demo import DemoResults, write_demo_report
from groupdetr.report.page import Html
from groupdetr.report.panels import DetectionPanel, GroupPanel, count_detected
from groupdetr.report.run import RunReport, write_run_report
from groupdetr.structures.detections import Detections, encode_masks
from groupdetr.tasks.detection2d.demo import detections_section, groups_section, subject

from .checks import assert_self_contained

CLASS_NAMES = ("circle", "<script>alert(1)</script>", 'a" onload="x')


def summary(groups: int, seed: int = 0, epochs: int = 4) -> RunSummary:
    """Return a run whose epochs take 1 + K/10 seconds and whose AP is (10 + K + seed) / 100."""
    ap = (10 + groups + seed) / 100
    seconds_per_epoch = 1 + groups / 10
    curve = []
    for epoch in range(1, epochs + 1):
        # Instability compares two evaluations, so the first one has none.
        instability = 4 / epoch if epoch > 1 else math.nan
        curve.append(
            {
                "epoch": epoch,
                "step": 10 * epoch,
                "seconds": seconds_per_epoch * epoch,
                "AP": ap * epoch / epochs,
                "AP50": ap,
                "loss": 1 / epoch,
                "lr": 1e-4,
                "instability": instability,
                "instability_groups": instability,
            }
        )
    return RunSummary(
        groups=groups,
        seed=seed,
        epochs=epochs,
        seconds=seconds_per_epoch * epochs,
        peak_memory_mb=100 + groups,
        metrics=dict.fromkeys(METRICS, ap),
        curve=curve,
    )


def detections(*boxes: list[float], labels: list[int]) -> Detections:
    scores = torch.linspace(0.9, 0.1, len(boxes))
    return Detections(scores, torch.tensor(labels), torch.tensor(boxes).reshape(-1, 4))


def detection_panel(detectors: tuple[str, ...] = ("K = 1", "K = 8")) -> DetectionPanel:
    """Return a panel in which all detectors find both objects."""
    target = detections([2, 2, 20, 20], [30, 30, 60, 60], labels=[0, 1])
    return DetectionPanel(Image.new("RGB", (96, 64)), target, dict.fromkeys(detectors, target))


def group_panel() -> GroupPanel:
    """Return a panel of one object and eight groups."""
    boxes = np.array([[2.0, 2, 20, 20]])
    return GroupPanel(
        image=Image.new("L", (96, 64)),
        object_boxes=boxes,
        group_boxes=np.repeat(boxes[None], 8, axis=1),
        group_points=np.full((1, 8, 2), 9.0),
        caption=CLASS_NAMES[1],
    )


def demo_page(
    folder: Path,
    *runs: RunSummary,
    kind: str = "box",
    longer: Sequence[RunSummary] = (),
    sections: Sequence[Html] = (),
    details: Mapping[str, object] | None = None,
) -> str:
    """Write the page of the demo and return it."""
    results = DemoResults(runs, subject(kind), longer, sections, details or {})
    write_demo_report(folder / "report.html", results)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert_self_contained(html)
    return html


def test_the_demo_page_shows_gain_images_and_details(tmp_path: Path) -> None:
    html = demo_page(
        tmp_path,
        summary(8),
        summary(1),
        sections=[
            detections_section([detection_panel(), detection_panel()], CLASS_NAMES, "box"),
            groups_section([group_panel()], "box"),
        ],
        details={"Command": "groupdetr demo <&>"},
    )
    assert "8 groups of queries instead of 1: +7.0 AP" in html
    assert "<script" not in html
    assert "arXiv 2207.13085" in html
    assert html.count('src="data:image/jpeg;base64,') == 2 * 3 + 1
    assert "2 of 2 detected" in html
    assert "groupdetr demo &lt;&amp;&gt;" in html
    assert "Instability of the matching" in html
    assert "nan" not in html


def test_several_seeds_and_several_numbers_of_groups(tmp_path: Path) -> None:
    runs = [summary(groups, seed) for groups in (1, 2, 4, 8) for seed in (0, 1, 2)]
    html = demo_page(tmp_path, *runs)
    assert 'class="band"' in html
    assert "on average over 3 seeds" in html


def test_metrics_that_are_undefined_for_every_seed(tmp_path: Path) -> None:
    """AP of large objects is undefined if there are no large objects."""
    runs = [summary(groups, seed) for groups in (1, 8) for seed in (0, 1, 2)]
    runs = [replace(run, metrics={**run.metrics, "AP_large": math.nan}) for run in runs]
    assert "nan" not in demo_page(tmp_path, *runs)


def test_a_demo_without_images_or_metrics_has_a_page(tmp_path: Path) -> None:
    """A run that was stopped before its first evaluation has neither."""
    empty = replace(summary(1), metrics={"AP": math.nan}, curve=[])
    assert "–" in demo_page(tmp_path, empty, replace(empty, groups=3))


def test_one_number_of_groups_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least two numbers of groups"):
        demo_page(tmp_path, summary(1, 0), summary(1, 1))


def test_gains_are_computed_seed_by_seed() -> None:
    base, other = collect_seeds([summary(1, 1), summary(8, 1), summary(1, 0), summary(8, 0)])
    assert (base.groups, other.groups) == (1, 8)
    assert gain(base, other).mean == pytest.approx(7)
    assert gain(base, other).std == pytest.approx(0)
    assert base.metric("AP").std == pytest.approx(math.sqrt(0.5))


def test_equal_wall_time_compares_with_a_baseline_that_trained_longer(tmp_path: Path) -> None:
    metrics = dict.fromkeys(METRICS, 0.15)
    longer = replace(summary(1, epochs=7), label="K = 1, longer", metrics=metrics)
    html = demo_page(tmp_path, summary(8), summary(1), longer=[longer])
    assert "+3.0" in html, "18 against 15 AP"
    assert "K = 1, longer" in html
    assert "7 epochs" in html


def test_each_object_is_found_once() -> None:
    target = detections([0, 0, 10, 10], [20, 20, 40, 40], labels=[0, 1])
    twice = detections([0, 0, 10, 10], [0, 0, 10, 9], labels=[0, 0])
    assert count_detected(target, target) == 2
    assert count_detected(target, twice) == 1
    assert count_detected(target, detections([0, 0, 10, 10], labels=[1])) == 0, "another class"
    assert count_detected(target, detections([0, 0, 10, 4], labels=[0])) == 0, "an IoU of 0.4"
    assert count_detected(detections(labels=[]), target) == 0


def test_an_object_with_a_mask_is_found_by_its_mask() -> None:
    """Two halves of the same box have the same box, but different masks."""
    masks = np.zeros((2, 20, 20), dtype=bool)
    masks[0, :10] = True
    masks[1, :, :10] = True
    without_mask = detections([0, 0, 20, 20], labels=[0])
    upper_half = replace(without_mask, masks=encode_masks(masks[:1]))
    left_half = replace(without_mask, masks=encode_masks(masks[1:]))
    assert count_detected(upper_half, upper_half) == 1
    assert count_detected(left_half, left_half) == 1
    assert count_detected(upper_half, left_half) == 0
    assert count_detected(upper_half, without_mask) == 1, "boxes are compared if one has no mask"


def test_the_demo_page_names_the_kind_of_ap(tmp_path: Path) -> None:
    runs = []
    for groups in (1, 8):
        metrics = dict.fromkeys((*METRICS, *BOX_METRICS), groups / 10)
        runs.append(replace(summary(groups), metrics=metrics))
    sections = [
        detections_section([detection_panel()], CLASS_NAMES, "mask"),
        groups_section([group_panel()], "mask"),
    ]
    of_masks = demo_page(tmp_path, *runs, sections=sections, kind="mask")
    assert "the box around the mask" in of_masks
    assert "COCO mask AP" in of_masks
    assert "a mask IoU of at least 0.5" in of_masks
    assert of_masks.count(">box AP75</th>") == 1
    of_boxes = demo_page(tmp_path, summary(1), summary(8))
    assert "COCO box AP" in of_boxes
    assert ">box AP75</th>" not in of_boxes


def test_the_page_of_a_run_shows_ap_of_masks_and_of_boxes(tmp_path: Path) -> None:
    stats = dict.fromkeys(METRICS, 0.25) | dict.fromkeys(BOX_METRICS, 0.321)
    evaluation = CocoEvaluation(stats, [], "mask")
    write_run_report(
        tmp_path / "run.html", RunReport("r", "d", summary(8), evaluation, CLASS_NAMES)
    )
    html = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert html.index("mask IoU") < html.index("box IoU")
    assert html.count("box IoU") == 1, "recall of boxes is not computed"
    assert "32.1" in html
    assert "nan" not in html


@pytest.mark.parametrize("panels", [(), (detection_panel(("Detections",)),)])
def test_the_page_of_a_run(tmp_path: Path, panels: tuple[DetectionPanel, ...]) -> None:
    rows = [ClassAP(CLASS_NAMES[1], math.nan, math.nan, 0, 0), ClassAP("circle", 0.5, 0.75, 3, 2)]
    evaluation = CocoEvaluation(dict.fromkeys(METRICS, 0.25) | {"AP_large": math.nan}, rows)
    report = RunReport(
        name="<run>",
        detector="conditional-detr-tiny",
        summary=summary(8),
        evaluation=evaluation,
        class_names=CLASS_NAMES,
        panels=panels,
        data={"images": 3},
        details={"a": "b"},
    )
    write_run_report(tmp_path / "report.html", report)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert_self_contained(html)
    assert html.index(">circle<") < html.index("&lt;script&gt;"), "the best class is the first"
    assert "1e−4" in html, "the learning rate"
    assert "mean of groups: 2 at 2" in html, "instability, which is undefined at epoch 1"
    assert "nan" not in html


def test_a_run_without_curves_or_classes_has_a_page(tmp_path: Path) -> None:
    evaluation = CocoEvaluation(dict.fromkeys(METRICS, math.nan), [])
    report = RunReport("r", "d", replace(summary(1), curve=[]), evaluation, ())
    write_run_report(tmp_path / "r.html", report)
    assert_self_contained((tmp_path / "r.html").read_text(encoding="utf-8"))
