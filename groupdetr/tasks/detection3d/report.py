"""The page of a run on scenes."""

from __future__ import annotations

import json
from pathlib import Path

from groupdetr.engine.run_folder import RunFolder
from groupdetr.evaluation.nuscenes import ERRORS, FIGURES, Evaluation
from groupdetr.report.comparison import RunSummary
from groupdetr.report.page import (
    Cell,
    Column,
    Html,
    Picture,
    Tile,
    facts,
    page,
    prose,
    section,
    table,
    tiles,
    wide,
)
from groupdetr.report.run import cost, lead, learning
from groupdetr.report.run_summary import about, summary
from groupdetr.tasks.detection3d.prediction import SceneDetector

PANELS = 4  # scenes on the page
WIDTH = 480  # pixels of a camera's picture there


def report(run: RunFolder) -> Path:
    """Write report.html of a run that has been evaluated at least once."""
    config, card = run.read_config(), json.loads(run.data.read_text())
    detector = SceneDetector(run.path, "cpu")
    evaluation = Evaluation.from_json(json.loads((run.val / "metrics.json").read_text()))
    splits = {
        name: f"{split['images']} samples of {split['version']}"
        for name, split in card["splits"].items()
    }
    trained = summary(run)
    body = [
        headline(evaluation, trained),
        learning(trained, FIGURES[:2], "samples"),
        section("Every class", classes(evaluation)),
        what_it_finds(detector, config["data"]),
        section("Data", facts({"data": card["root"], **splits})),
        section("Run", facts(about(config, detector.recipe))),
    ]
    run.report.write_text(
        page("groupdetr run", run.path.name, lead(config["model"], trained), body), encoding="utf-8"
    )
    return run.report


def headline(evaluation: Evaluation, trained: RunSummary) -> Html:
    score, precision = (f"{100 * evaluation.stats[name]:.1f}" for name in FIGURES[:2])
    error = Tile(
        "Error of places", f"{evaluation.stats['mATE']:.2f}", "m", "of hits within two metres"
    )
    return tiles([Tile("NDS", score, strong=True), Tile("mAP", precision), error, *cost(trained)])


def classes(evaluation: Evaluation) -> Html:
    head = [
        Column("class"),
        Column("AP", 1),
        *(Column(name, 2) for name in ERRORS),
        Column("objects", 0),
    ]
    objects = sum(row.objects for row in evaluation.per_class)
    mean: list[Cell] = [
        "mean",
        100 * evaluation.stats["mAP"],
        *(evaluation.stats[f"m{name}"] for name in ERRORS),
        objects,
    ]
    rows: list[list[Cell]] = [
        [row.name, 100 * row.AP, *(getattr(row, name) for name in ERRORS), row.objects]
        for row in evaluation.per_class
    ]
    words = (
        "AP in points; errors of hits within two metres, in place (m), scale, orientation (rad), velocity (m/s) and "
        "attribute; a dash where there is no such error."
    )
    return table(head, [mean, *rows], words)


def what_it_finds(detector: SceneDetector, data: str) -> Html:
    """Samples of val with as many boxes as there are objects."""
    words = "Validation samples, with as many boxes as there are objects, the surest first; what is there is white."
    pictures = []
    for result in detector.predict(data, score=0.0, limit=PANELS):
        result = result.best(len(result.truth))
        lowest = f", the last box has a score of {result.scores[-1]:.2f}" if len(result) else ""
        caption = f"{len(result.truth)} objects{lowest}"
        pictures.append(Picture(result.draw(WIDTH), result.sample.scene, caption))
    return section("What it finds", prose(words), wide(pictures))
