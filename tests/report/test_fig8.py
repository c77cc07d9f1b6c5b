"""The sentences on the page of Fig. 8 agree with its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from groupdetr.evaluation.coco import METRICS
from groupdetr.report.comparison import RunSummary
from groupdetr.report.fig8 import Fig8Results, write_fig8_report
from groupdetr.workflows.fig8 import FIG8

from .checks import assert_self_contained, numbers_in_svg

SEEDS = (0, 1, 2)
REPORTED = {variant.label: variant.reported for variant in FIG8}
# AP of none, denoising, groups and both. Their order is that of the paper, and the gains overlap.
LIKE_PAPER = (20.0, 23.0, 25.0, 26.0)
OFFSET_OF_SEED = (0, 1, -1)  # what a seed adds to AP


def summary(index: int, ap: float, seed: int = 0, **values: float) -> RunSummary:
    """Return a run of variant ``index``. Denoising varies twice as much between seeds."""
    variant = FIG8[index]
    scale = 2 if variant.label == "denoising" else 1
    final_ap = (ap + scale * OFFSET_OF_SEED[seed]) / 100
    curve = []
    for epoch in range(1, 5):
        row = {"epoch": epoch, "seconds": epoch, "AP": final_ap * epoch / 4, "loss": 9 - epoch}
        curve.append(row | values)
    groups = 6 if variant.grouped else 1
    return RunSummary(
        groups=groups,
        seed=seed,
        epochs=4,
        seconds=10.0 * groups,
        peak_memory_mb=500,
        metrics=dict.fromkeys(METRICS, final_ap),
        curve=curve,
        label=variant.label,
    )


def page(folder: Path, aps: Sequence[float], seeds: Sequence[int] = SEEDS, **values: float) -> str:
    """Write the page of runs with these AP, and return it. ``values`` are added to all curves."""
    runs = []
    for seed in seeds:
        for index, ap in enumerate(aps):
            runs.append(summary(index, ap, seed, **values))
    return write(folder, runs)


def write(folder: Path, runs: Sequence[RunSummary]) -> str:
    path = folder / "report.html"
    write_fig8_report(path, Fig8Results(runs, REPORTED, {"command": "demo <&>"}))
    html = path.read_text(encoding="utf-8")
    assert_self_contained(html)
    assert all(math.isfinite(number) for number in numbers_in_svg(html))
    assert ">nan" not in html
    return html


def test_results_like_those_of_the_paper(tmp_path: Path) -> None:
    html = page(tmp_path, LIKE_PAPER)
    assert "Groups help without denoising and with it: +5.0 and +3.0 AP" in html
    assert "on average over 3 seeds" in html
    of_paper = "denoising brings +3.4 AP, groups bring +3.9 and both +5.4"
    assert of_paper in html
    measured = "denoising brings +3.0 ± 1.0 AP, groups bring +5.0 ± 0.0 and both +6.0 ± 0.0"
    assert measured in html
    assert html.count("As in the paper") == 3, "the order, groups with denoising, and the overlap"
    assert "demo &lt;&amp;&gt;" in html


def test_results_unlike_those_of_the_paper(tmp_path: Path) -> None:
    html = page(tmp_path, (20, 26, 24, 25), seeds=[0])
    assert "Groups help without denoising, not clearly with it: +4.0 and −1.0 AP" in html
    assert "Unlike in the paper, denoising brings more than groups." in html
    assert "groups lower AP if denoising is used" in html
    assert "As in the paper, both together bring less than the sum of the two gains" in html
    assert "One seed does not show" in html


def test_a_gain_within_the_deviation_of_the_seeds_is_not_clear(tmp_path: Path) -> None:
    html = page(tmp_path, (20, 23, 20, 23.5))
    assert "Groups do not clearly help, without denoising or with it: +0.0 and +0.5 AP" in html
    assert "do not clearly help if denoising is used" in html
    assert "Both together bring about the sum of the two gains" in html


def test_the_plot_shows_every_seed_and_the_table_every_training(tmp_path: Path) -> None:
    html = page(tmp_path, LIKE_PAPER)
    plot = html.split("<svg")[1].split("</svg>")[0]
    table = html.split("<table>")[1].split("</table>")[0]
    assert plot.count('class="dot"') == 4 * len(SEEDS)
    means = "none 20.0, denoising 23.0, groups 25.0, both 26.0"
    assert f'aria-label="AP after the last epoch: {means}"' in plot
    assert table.count("<tr>") == 1 + 4
    assert all(f">{reported}<" in table for reported in REPORTED.values())


def test_instability_is_drawn_if_it_was_measured(tmp_path: Path) -> None:
    assert "Instability of the matching" in page(tmp_path, LIKE_PAPER, instability=0.2)
    assert "Instability" not in page(tmp_path, LIKE_PAPER)
    assert "Instability" not in page(tmp_path, LIKE_PAPER, instability=math.nan)


def test_trainings_without_metrics_have_a_page(tmp_path: Path) -> None:
    runs = [summary(index, 20) for index in range(4)]
    runs = [replace(run, metrics={"AP": math.nan}, curve=[]) for run in runs]
    html = write(tmp_path, runs)
    assert "–" in html
    assert "no data" in html


def test_three_trainings_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="four trainings, not 3"):
        page(tmp_path, LIKE_PAPER[:3])
