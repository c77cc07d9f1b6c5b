"""The pages of the demo, of comparisons and of a run, from numbers to HTML."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from groupdetr.evaluation.coco import BOX_METRICS, METRICS, ClassAP, CocoEvaluation
from groupdetr.paper.demo import Demo
from groupdetr.paper.results import Results
from groupdetr.report.comparison import (
    Configuration,
    Gain,
    RunSummary,
    gain,
    gain_at_equal_time,
    time_key,
)
from groupdetr.report.comparison_page import ComparisonPage, GainRow, sentence
from groupdetr.report.page import Html
from groupdetr.report.panels import DetectionPanel, GroupPanel, count_detected
from groupdetr.report.run import RunReport, write_run_report
from groupdetr.structures.detections import Detections, encode_masks
from groupdetr.tasks.detection2d.comparison import matched_queries_section, one_label_per_box

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
                "seconds": 2 * seconds_per_epoch * epoch,
                "cpu_seconds": seconds_per_epoch * epoch,
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
        seconds=2 * seconds_per_epoch * epochs,
        peak_memory_mb=100 + groups,
        metrics=dict.fromkeys(METRICS, ap),
        curve=curve,
        cpu_seconds=seconds_per_epoch * epochs,
        steps=10 * epochs,
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


def demo_results(*runs: RunSummary, longer: Sequence[RunSummary] = ()) -> Results:
    """Return the results of the demo. The smallest K is the baseline."""
    by_groups: dict[int, list[RunSummary]] = {}
    for run in sorted(runs, key=lambda run: (run.groups, run.seed)):
        by_groups.setdefault(run.groups, []).append(run)
    (base_groups, base_runs), (groups, grouped_runs) = by_groups.items()
    base = Configuration("k1", f"K = {base_groups}", base_runs, True, reported=32.6)
    longer_base = Configuration("longer", "K = 1, longer", longer or base_runs, True)
    grouped = Configuration("k", f"K = {groups}", grouped_runs, reported=37.6)
    return Results(
        item="demo",
        scale="small scale",
        metric="AP",
        metrics=METRICS[:6],
        configurations=[base, longer_base, grouped],
        gains=[
            GainRow("gain at equal epochs", "k1", "k", 5.0),
            GainRow("gain at equal time", "longer", "k", 3.2),
        ],
        environment={"cores": 2, "system": "Linux", "packages": {}, "command": "demo <&>"},
    )


def demo_page(*runs: RunSummary, longer: Sequence[RunSummary] = ()) -> str:
    """Return the page of the demo, drawn from what a file of its results holds."""
    results = demo_results(*runs, longer=longer)
    again = Results.from_json(json.loads(json.dumps(results.to_json(), allow_nan=False)))
    html = Demo().document(again)
    assert_self_contained(html)
    return html


def test_the_demo_page_shows_gains_beside_the_papers() -> None:
    html = demo_page(summary(8), summary(1))
    assert "8 groups of queries instead of one: +7.0 AP at equal epochs" in html
    assert "the paper: +5.0" in html
    assert "one seed does not tell it from chance" in html
    assert "arXiv 2207.13085" in html
    assert "demo &lt;&amp;&gt;" in html
    assert "Instability of the matching" in html
    assert 'class="line dashed"' in html, "the baseline"
    assert 'class="line bold"' in html, "the groups"
    assert "nan" not in html


def test_several_seeds_have_bands_dots_and_intervals() -> None:
    runs = [summary(groups, seed) for groups in (1, 8) for seed in (0, 1, 2)]
    html = demo_page(*runs)
    assert 'class="band"' in html
    assert "on average over 3 seeds" in html
    assert "95% interval +7.0 to +7.0 over 3 seeds" in html


def test_metrics_that_are_undefined_for_every_seed() -> None:
    """AP of large objects is undefined if there are no large objects."""
    runs = [summary(groups, seed) for groups in (1, 8) for seed in (0, 1, 2)]
    runs = [replace(run, metrics={**run.metrics, "AP_large": math.nan}) for run in runs]
    assert "nan" not in demo_page(*runs)


def test_equal_time_compares_with_a_baseline_that_trained_longer() -> None:
    metrics = dict.fromkeys(METRICS, 0.15)
    longer = replace(summary(1, epochs=7), metrics=metrics)
    html = demo_page(summary(8), summary(1), longer=[longer])
    assert "+3.0 at equal time" in html, "18 against 15 AP"
    assert "Trained for 7 epochs" in html


def configuration(groups: int, seeds: Sequence[int] = (0,), **changes: Any) -> Configuration:
    runs = [replace(summary(groups, seed), **changes) for seed in seeds]
    return Configuration(f"k{groups}", f"K = {groups}", runs)


def test_gains_are_computed_seed_by_seed_over_the_seeds_that_both_have() -> None:
    base, other = configuration(1, (0, 1, 2)), configuration(8, (1, 0))
    measured = gain(base, other, "AP")
    assert measured.mean == pytest.approx(7)
    assert measured.seeds == 2
    assert measured.low == pytest.approx(7)


def test_the_interval_of_a_gain_is_that_of_students_t() -> None:
    """With three seeds, the quantile of printed tables is 4.302653."""
    measured = Gain.from_differences([1.0, 2.0, 4.0])
    assert measured.mean == pytest.approx(7 / 3)
    margin = 4.302653 * math.sqrt((7 / 3) / 3)  # the variance is 7/3
    assert measured.low == pytest.approx(7 / 3 - margin)
    assert measured.high == pytest.approx(7 / 3 + margin)
    assert not measured.is_clear
    assert Gain.from_differences([4.0, 5.0, 6.0]).is_clear
    assert not Gain.from_differences([3.0]).has_interval


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([4.0, 5.0, 6.0], "the direction is the same"),
        ([-4.0, -5.0, -6.0], "this contradicts the paper"),
        ([-4.0, 5.0, 6.0], "do not tell the direction"),
        ([4.0], "one seed does not tell it from chance"),
    ],
)
def test_a_sentence_says_if_a_gain_agrees_with_the_paper(
    differences: list[float], words: str
) -> None:
    row = GainRow("gain", "a", "b", reported=5.0)
    assert words in sentence(row, Gain.from_differences(differences), "AP")


def test_a_gain_at_equal_time_is_read_from_the_curves() -> None:
    """AP grows linearly with the epochs; an epoch takes 1.1 s with K = 1, and 1.8 s with K = 8."""
    base, other = configuration(1), configuration(8)
    measured, end = gain_at_equal_time(base, other, "AP", "cpu_seconds")
    assert end == pytest.approx(4 * 1.1)
    assert measured.mean == pytest.approx(100 * (0.18 / 4 * 4.4 / 1.8 - 0.11))


def test_a_step_is_compared_with_that_of_the_fewest_groups_in_whatever_row_it_is() -> None:
    page = ComparisonPage([configuration(6), configuration(1)], [], "AP", ["AP"])
    assert [page.step_ratio(item) for item in page.configurations] == pytest.approx([1.6 / 1.1, 1])


def test_cpu_time_is_compared_if_every_run_has_it() -> None:
    base, other = configuration(1), configuration(8)
    assert time_key([base, other]) == "cpu_seconds"
    assert time_key([base, configuration(8, cpu_seconds=math.nan)]) == "seconds"


def test_a_box_with_several_classes_keeps_the_best_one() -> None:
    twice = detections([0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 9, 9], labels=[0, 1, 1])
    kept = one_label_per_box(twice)
    assert kept.labels.tolist() == [0, 1]
    assert kept.boxes.tolist() == [[0, 0, 10, 10], [5, 5, 9, 9]]


def test_the_section_of_matched_queries_names_the_kind_of_box() -> None:
    of_masks: Html = matched_queries_section([group_panel()], "mask")
    assert "the box around the mask" in of_masks
    assert of_masks.count("data:image/jpeg") == 1
    assert "<script" not in of_masks


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
