"""Fig. 4: every group alone detects as well as the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from groupdetr.analysis.group_pass import GroupPass
from groupdetr.console.progress import CountProgress
from groupdetr.engine.accelerator import create_single_accelerator
from groupdetr.paper.fig3 import OneDetector
from groupdetr.paper.item import Choices
from groupdetr.paper.plan import Row
from groupdetr.paper.results import Results, markdown
from groupdetr.paper.scale import Detector, Scale, expect_images
from groupdetr.report.dots import DotRow, dot_chart
from groupdetr.report.page import Cell, Column, Html, Tile, prose, section, table, tiles
from groupdetr.tasks.detection2d.all_groups import expect_objects
from groupdetr.tasks.detection2d.prediction import Detector as TrainedDetector

BATCH = 16


class Fig4(OneDetector):
    name = "fig4"
    title = "Fig. 4: every group alone"
    shows = "Does it matter which group is kept after training?"
    source = "The paper's groups have a median of 37.5 AP on COCO, within 0.1."

    def detectors(self, scale: Scale) -> list[Detector]:
        detectors = super().detectors(scale)
        expect_images(self.name, detectors[0])
        return detectors

    def measure(self, scale: Scale, _choices: Choices, rows: Sequence[Row]) -> dict[str, object]:
        by_seed = {}
        for training in rows[-1].trainings:
            run = scale.store.folder(training)
            progress = CountProgress(f"groups of seed {training.seed}")
            by_seed[str(training.seed)] = group_metrics(run, training.data.folder, progress)
        return {"groups": by_seed}

    def body(self, results: Results, images: Sequence[Html]) -> list[Html]:
        by_seed: dict[str, list[float]] = results.extra["groups"]
        spreads = [max(values) - min(values) for values in by_seed.values()]
        items = []
        for seed, values in list(by_seed.items())[:3]:
            note = f"lowest {min(values):.1f}, highest {max(values):.1f}"
            items.append(Tile(f"Median, seed {seed}", f"{median(values):.1f}", "AP", note))
        dots = [DotRow(f"seed {seed}", values, median=True) for seed, values in by_seed.items()]
        num_groups = len(next(iter(by_seed.values())))
        columns = [Column("seed"), *(Column(f"group {k}", 1) for k in range(num_groups))]
        columns += [Column("median", 1)]
        rows: list[list[Cell]] = []
        for seed, values in by_seed.items():
            rows.append([seed, *values, median(values)])
        text = (
            f"Each group is evaluated alone, as if it were kept after training. The groups of one "
            f"training differ by at most {max(spreads):.1f} AP; in the paper they are within 0.1 "
            "of the median, 37.5 AP, on the 5,000 images of COCO's validation set. Group 0 is the "
            "one that is used."
        )
        caption = "A dot for each group; the bar is at their median."
        return [
            tiles(items),
            section(
                "AP of every group",
                prose(text),
                dot_chart("AP of every group alone", "AP", dots, caption),
                table(columns, rows, "AP in percent, with the best weights of each training."),
            ),
            *super().body(results, images)[2:],
        ]

    def table(self, results: Results) -> str:
        by_seed: dict[str, list[float]] = results.extra["groups"]
        num_groups = len(next(iter(by_seed.values())))
        names = ["seed", *(f"group {k}" for k in range(num_groups)), "median"]
        rows = []
        for seed, values in by_seed.items():
            rows.append([seed, *(f"{value:.1f}" for value in [*values, median(values)])])
        return markdown(names, rows)


def group_metrics(run: Path, data: Path, progress: CountProgress) -> list[float]:
    """Return the AP of every group alone, in percent, with the best weights of a run.

    One pass over the validation images runs all groups: they do not attend to each other.
    `UsageError` if no validation image has an object, because then there is no AP.
    """
    accelerator = create_single_accelerator("auto")
    detector = TrainedDetector(run, str(accelerator.device))
    task = detector.create_task(detector.task.read(data, None))
    expect_objects(task.val.records, data)
    with progress:
        images = GroupPass(detector.model, task, accelerator).detect(BATCH, 0, progress)
    metrics = []
    for group in range(detector.recipe.num_groups):
        result: Any = task.evaluate([detections[group] for detections in images])
        metrics.append(round(100 * result.stats["AP"], 3))
    return metrics
