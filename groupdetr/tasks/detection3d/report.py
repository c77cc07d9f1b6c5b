"""The HTML page of a run of a 3D detector."""

from __future__ import annotations

import json
from pathlib import Path

from groupdetr.console.text import quantity
from groupdetr.data.nuscenes.version import NuScenes
from groupdetr.engine.run_folder import RunFolder, write_text
from groupdetr.evaluation.nuscenes import ERRORS, METRICS, NuScenesEvaluation
from groupdetr.report.comparison import RunSummary
from groupdetr.report.page import (
    CaptionedImage,
    Cell,
    Column,
    Html,
    Tile,
    facts,
    page,
    prose,
    section,
    table,
    tiles,
    wide,
)
from groupdetr.report.run import cost_tiles, lead_paragraph, learning_section
from groupdetr.report.run_summary import run_details, summarize_run
from groupdetr.tasks.detection3d.prediction import SceneDetector, evenly_spaced_indices

NUM_SAMPLES = 4  # samples that are drawn on the page
IMAGE_WIDTH = 480  # pixels of one camera's image on the page
HEADLINE_METRICS = METRICS[:2]  # NDS and mAP


def report(run: RunFolder, dataset: NuScenes) -> Path:
    """Write report.html of a run that has been evaluated at least once, and return its path.

    ``dataset`` is what the run was trained on.
    """
    config = run.read_config()
    metadata = json.loads(run.data.read_text(encoding="utf-8"))
    metrics = json.loads(run.best_metrics.read_text(encoding="utf-8"))
    evaluation = NuScenesEvaluation.from_json(metrics)
    detector = SceneDetector(run.path, "cpu")
    summary = summarize_run(run)
    data: dict[str, object] = {"data": metadata["root"]}
    for name, split in metadata["splits"].items():
        data[name] = f"{split['images']} samples of {split['version']}"
    body = [
        headline(evaluation, summary),
        learning_section(summary, HEADLINE_METRICS, "samples"),
        section("Every class", class_table(evaluation)),
        detections_section(detector, dataset),
        section("Data", facts(data)),
        section("Run", facts(run_details(config, detector.recipe))),
    ]
    lead = lead_paragraph(config["model"], summary)
    document = page("groupdetr run", run.path.name, lead, body)
    write_text(run.report, document)
    return run.report


def headline(evaluation: NuScenesEvaluation, summary: RunSummary) -> Html:
    """Return the tiles with the most important metrics."""
    nds, mean_ap = (f"{100 * evaluation.stats[name]:.1f}" for name in HEADLINE_METRICS)
    translation_error = f"{evaluation.stats['mATE']:.2f}"
    return tiles(
        [
            Tile("NDS", nds, strong=True),
            Tile("mAP", mean_ap),
            Tile("Translation error", translation_error, "m", "of matches within two metres"),
            *cost_tiles(summary),
        ]
    )


def class_table(evaluation: NuScenesEvaluation) -> Html:
    """Return the table of AP and errors of all classes, with their mean as the first row."""
    columns = [Column("class"), Column("AP", 1)]
    columns += [Column(name, 2) for name in ERRORS]
    columns.append(Column("objects", 0))

    mean: list[Cell] = ["mean", 100 * evaluation.stats["mAP"]]
    mean += [evaluation.stats[f"m{name}"] for name in ERRORS]
    mean.append(sum(score.objects for score in evaluation.per_class))
    rows = [mean]
    for score in evaluation.per_class:
        row: list[Cell] = [score.name, 100 * score.AP]
        row += [getattr(score, name) for name in ERRORS]
        row.append(score.objects)
        rows.append(row)
    caption = (
        "AP in percent. The errors are means over matches within two metres, of translation (m), "
        "scale, orientation (rad), velocity (m/s) and attribute. A dash means that the class has "
        "no such error."
    )
    return table(columns, rows, caption)


def detections_section(detector: SceneDetector, dataset: NuScenes) -> Html:
    """Return the section with drawn samples of the validation split."""
    text = (
        "Validation samples. As many boxes are drawn as there are objects, those with the highest "
        "scores. Objects are white."
    )
    samples = detector.task.val_dataset(dataset.splits["val"], detector.imgsz)
    images = []
    for index in evenly_spaced_indices(len(samples), NUM_SAMPLES):
        full_result = detector.predict_sample(samples, index, score=0.0)
        num_objects = len(full_result.truth)
        result = full_result.best(num_objects)
        caption = f"{quantity(num_objects, 'object')}"
        if len(result):
            caption += f", the last box has a score of {result.scores[-1]:.2f}"
        images.append(CaptionedImage(result.draw(IMAGE_WIDTH), result.sample.scene, caption))
    return section("Detections", prose(text), wide(images))
