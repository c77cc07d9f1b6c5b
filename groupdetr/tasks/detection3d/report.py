"""The page of a run on scenes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from groupdetr.engine.machine import environment
from groupdetr.engine.run import RunFolder, is_evaluation
from groupdetr.evaluation.nuscenes import ERRORS, Evaluation
from groupdetr.report.chart import Chart, Series, charts
from groupdetr.report.page import Cell, Column, Html, Picture, Tile, facts, page, prose, section, table, tiles, wide
from groupdetr.tasks.detection3d.prediction import SceneDetector

PANELS = 4  # scenes on the page
WIDTH = 480  # pixels of a camera's picture there


def report(run: RunFolder) -> Path:
    """Write report.html of a run that has been evaluated at least once."""
    config, card = run.read_config(), json.loads(run.data.read_text())
    detector = SceneDetector(run.path, "cpu")
    evaluation = Evaluation.from_json(json.loads((run.val / "metrics.json").read_text()))
    splits = {name: f"{split['images']} samples of {split['version']}" for name, split in card["splits"].items()}
    lead = f"{config['model']}, trained with {detector.recipe.num_groups} groups of queries on scenes of six cameras."
    body = [
        headline(evaluation),
        section("Learning", charts(list(curves(run)))),
        section("Every class", classes(evaluation)),
        what_it_finds(detector, config["data"]),
        section("Data", facts({"data": card["root"], **splits})),
        section("Run", facts({**config["settings"], "command": environment()["command"]})),
    ]
    run.report.write_text(page("groupdetr run", run.path.name, lead, body), encoding="utf-8")
    return run.report


def headline(evaluation: Evaluation) -> Html:
    scores = [Tile(name, f"{100 * evaluation.stats[name]:.1f}", strong=name == "NDS") for name in ("NDS", "mAP")]
    return tiles([*scores, *(Tile(f"m{name}", f"{evaluation.stats[f'm{name}']:.2f}") for name in ERRORS)])


def curves(run: RunFolder) -> Iterator[Chart]:
    evaluated = run.evaluations()
    steps = [record for record in run.records() if not is_evaluation(record)]
    epochs = [record["epoch"] for record in evaluated]
    scores = [Series(name, epochs, [100 * record[name] for record in evaluated]) for name in ("NDS", "mAP")]
    yield Chart("NDS and mAP on the validation samples", "epoch", "points", scores)
    losses = Series("loss", [record["epoch"] for record in steps], [record["loss"] for record in steps])
    yield Chart("Training loss", "epoch", "loss", [losses])


def classes(evaluation: Evaluation) -> Html:
    head = [Column("class"), Column("AP", 1), *(Column(name, 2) for name in ERRORS), Column("objects", 0)]
    rows: list[list[Cell]] = [
        [row.name, 100 * row.AP, *(getattr(row, name) for name in ERRORS), row.objects] for row in evaluation.per_class
    ]
    return table(head, rows, "AP in points, errors of hits within two metres; a dash where there is no such error.")


def what_it_finds(detector: SceneDetector, data: str) -> Html:
    """Samples of val with as many boxes as there are objects."""
    words = "Validation samples, with as many boxes as there are objects, the surest first; what is there is white."
    pictures = []
    for result in detector.predict(data, score=0.0, limit=PANELS):
        result = result.best(len(result.truth))
        caption = f"{len(result.truth)} objects, the last box has a score of {float(result.found.scores[-1]):.2f}"
        pictures.append(Picture(result.draw(WIDTH), result.sample.scene, caption))
    return section("What it finds", prose(words), wide(pictures))
