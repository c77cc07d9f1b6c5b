"""What the groups of a trained detector know: the function of `groupdetr groups`.

All of it follows from one forward pass with all groups over a split: AP of each group (Fig. 4 of
the paper), the use of the queries, the agreement of the groups about each object, and their
disagreement as the uncertainty of a detection.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from groupdetr.analysis.box_fusion import fuse_groups
from groupdetr.analysis.calibration import Calibration, calibrate, detection_errors
from groupdetr.analysis.group_agreement import ObjectAgreement, object_agreement
from groupdetr.analysis.query_use import MIN_SCORE, TWIN_DISTANCE, QueryUse, query_use
from groupdetr.checkpoints import native
from groupdetr.console.text import quantity
from groupdetr.data.image_decoding import load_image
from groupdetr.data.records import CocoSplit
from groupdetr.engine.run_folder import RunFolder, training_data, write_json, write_text
from groupdetr.errors import DataError
from groupdetr.evaluation.coco import CocoEvaluation
from groupdetr.evaluation.error_analysis import DEFAULT_THRESHOLD
from groupdetr.evaluation.nan_json import nan_to_none
from groupdetr.registry import recipe_to_dict
from groupdetr.report.groups import (
    ClassAgreement,
    DisputedImage,
    FusedGroups,
    GroupsReport,
    QueryMap,
    ShownTwins,
    UncertaintyCurve,
    UncertaintyReport,
    write_groups_report,
)
from groupdetr.structures.detections import Detections
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.all_groups import GroupsOnSplit, expect_objects, match_all_groups
from groupdetr.tasks.detection2d.group_detections import GroupDetections, best_of_each_group
from groupdetr.tasks.detection2d.group_uncertainty import uncertainty_of
from groupdetr.tasks.detection2d.group_vote import expect_several_groups, voting_groups
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.validation import (
    expect_outside_split,
    group_rows,
    read_own_split,
    summary_rows,
    with_classes_of,
)
from groupdetr.tasks.result_formats import Metrics, MetricsTable, format_csv

BEST_GROUP_FILE = "best-group.safetensors"  # in the folder of the weights of a run
NUM_DISPUTED = 6  # images on the page
MAX_DISPUTED_OBJECTS = 8  # of an image that are drawn
FUSED = (2, 3)  # groups that are fused, besides all of them


def analyse_groups(
    run: Path,
    *,
    data: Path | None,
    images: Path | None,
    cache: bool,
    split: str | None,
    imgsz: int | None,
    batch: int,
    workers: int | None,
    device: str,
    best: bool,
    out: Path,
) -> Metrics:
    """Write groups.json and report.html to the folder ``out``, and return what groups.json holds.

    The arguments are the options of `groupdetr groups`. With ``best``, a weights file in which the
    best group answers is written beside the best weights of the run. ``cache`` as in
    `groupdetr.data.layouts.load`.
    """
    detector = Detector(run, device, imgsz)
    expect_several_groups(detector)
    evaluated, part, root = _read(run, detector, data, images, split, cache)
    expect_outside_split(out, root, evaluated)
    expect_objects(evaluated.records, evaluated.annotation_file)
    result = match_all_groups(detector, evaluated, batch, workers)

    evaluations = [result.task.evaluate(result.of_group(g)) for g in range(result.num_groups)]
    use = query_use(
        [image.matched for image in result.images],
        [image.scores for image in result.images],
        [image.points for image in result.images],
    )
    threshold = _threshold(evaluations[result.answering])
    fused = _fuse(result)
    agreement = agreement_of_objects(result, threshold)
    calibration = calibrate_uncertainty(result, threshold)
    report = GroupsReport(
        name=f"The groups of {run.name}",
        lead=f"{quantity(result.num_groups, 'group')} of {use.wins.shape[1]} queries, on "
        f"{quantity(len(evaluated), 'image')}: {part} of {evaluated.annotation_file}. Weights: "
        f"{detector.path}.",
        answering=result.answering,
        groups=evaluations,
        fused=fused,
        seconds_one=result.seconds_one,
        seconds_all=result.seconds_all,
        queries=_query_map(use),
        all_objects=_class_agreement("all classes", agreement),
        per_class=_per_class(result, agreement),
        threshold=threshold,
        disputed=_disputed_images(result, agreement),
        uncertainty=calibration,
    )
    content = {
        "split": evaluated.name,
        "weights": str(detector.path),
        "data": str(root),
        "images": len(evaluated),
        "groups": result.num_groups,
        "queries": use.wins.shape[1],
        "answering_group": report.answering,
        "best_group": report.best,
        "score_threshold": threshold,
        "milliseconds_one_group": round(1000 * result.seconds_one, 2),
        "milliseconds_all_groups": round(1000 * result.seconds_all, 2),
        "per_group": [evaluation.to_json() for evaluation in evaluations],
        "vote": [{"groups": row.groups, **row.evaluation.to_json()} for row in fused],
        "agreement": [_agreement_json(row) for row in (report.all_objects, *report.per_class)],
        "uncertainty": _uncertainty_json(calibration),
        "query_use": use.to_json(),
        "best_weights": None,
    }
    if best:
        file = RunFolder(run).best.with_name(BEST_GROUP_FILE)
        write_best_group(detector, report.best, _threshold(evaluations[report.best]), file)
        content["best_weights"] = str(file)
    write_json(out / "groups.json", content)
    write_text(out / "per_group.csv", format_csv(group_rows(evaluations)))
    write_groups_report(out / "report.html", report)
    line = f"{quantity(len(evaluated), 'image')}: {part} of {evaluated.annotation_file}"
    return Metrics(content, _tables(report, content["best_weights"]), out, line)


def _read(
    run: Path,
    detector: Detector,
    data: Path | None,
    images: Path | None,
    split: str | None,
    cache: bool,
) -> tuple[CocoSplit, str, Path]:
    """Return a split with the classes of the detector, a text that names it, and its dataset."""
    if data is None:
        data, images = training_data(run, "add --data DATA")
        evaluated, part = read_own_split(detector, data, images, split or "val", cache)
    else:
        evaluated = detector.task.read_split(data, images, split, cache)
        part = "all images" if evaluated.name == "all" else f"split {evaluated.name}"
    return with_classes_of(detector, evaluated), part, data


def _threshold(evaluation: CocoEvaluation) -> float:
    """Return the score threshold with the best F1; 0.5 if nothing is detected."""
    best = None if evaluation.errors is None else evaluation.errors.best_f1
    return DEFAULT_THRESHOLD if best is None else best.score


def _fuse(result: GroupsOnSplit) -> list[FusedGroups]:
    """Return the evaluations of the fused boxes of the first 2, 3 and K groups.

    There is none for a detector of masks, which are not fused.
    """
    if result.task.kind != "box":
        return []
    evaluations = []
    for number in sorted({*(n for n in FUSED if n < result.num_groups), result.num_groups}):
        start = time.perf_counter()
        detections = []
        for image in result.images:
            chosen = voting_groups(result.num_groups, number, result.answering)
            groups = [image.detections[group] for group in chosen]
            detections.append(fuse_groups(groups, result.task.num_detections).detections)
        seconds = (time.perf_counter() - start) / len(result.images)
        evaluations.append(FusedGroups(number, result.task.evaluate(detections), seconds))
    return evaluations


@dataclass(frozen=True)
class _ImageAgreement:
    """The objects of one image, and the agreement of the groups about them."""

    objects: Detections
    groups: GroupDetections
    agreement: ObjectAgreement


def agreement_of_objects(result: GroupsOnSplit, threshold: float) -> list[_ImageAgreement]:
    """Return the agreement of the groups about the objects of every image."""
    rows = []
    for index, image in enumerate(result.images):
        objects = result.task.ground_truth(index)
        groups = best_of_each_group(objects, image.detections)
        agreement = object_agreement(groups.scores, groups.boxes, threshold)
        rows.append(_ImageAgreement(objects, groups, agreement))
    return rows


def _class_agreement(
    name: str, images: Sequence[_ImageAgreement], label: int | None = None
) -> ClassAgreement:
    """Return the agreement about the objects of one class, or of all if ``label`` is None."""
    counts, box_spread, score_spread = [], [], []
    num_groups = images[0].agreement.is_detected.shape[1]
    for image in images:
        labels = image.objects.labels.numpy()
        chosen = np.ones(len(labels), bool) if label is None else labels == label
        counts.append(image.agreement.num_groups[chosen])
        box_spread.append(image.agreement.box_spread[chosen])
        score_spread.append(image.agreement.score_spread[chosen])
    detected_by = np.bincount(np.concatenate(counts), minlength=num_groups + 1)
    return ClassAgreement(name, detected_by.tolist(), _mean(box_spread), _mean(score_spread))


def _mean(values: Sequence[NDArray[np.float64]]) -> float:
    """Return the mean of all values that are not nan; nan if there is none."""
    flat = np.concatenate(values)
    defined = flat[~np.isnan(flat)]
    return float(defined.mean()) if len(defined) else float("nan")


def _per_class(result: GroupsOnSplit, images: Sequence[_ImageAgreement]) -> list[ClassAgreement]:
    """Return the agreement about the objects of each class that has objects."""
    rows = []
    for label, name in enumerate(result.detector.names):
        row = _class_agreement(name, images, label)
        if row.objects:
            rows.append(row)
    return rows


def _agreement_json(row: ClassAgreement) -> JsonObject:
    spreads = nan_to_none({"box_spread": row.box_spread, "score_spread": row.score_spread})
    return {
        "name": row.name,
        "objects": row.objects,
        "detected_by": list(row.detected_by),
        **spreads,
    }


def _disputed_images(
    result: GroupsOnSplit, images: Sequence[_ImageAgreement]
) -> list[DisputedImage]:
    """Return the images with the most objects that some groups detect, but not all of them."""

    def disputed(image: _ImageAgreement) -> NDArray[np.int64]:
        number = image.agreement.num_groups
        rows = np.flatnonzero((number > 0) & (number < result.num_groups))
        # The objects about which the groups are most divided come first.
        return rows[np.argsort(np.abs(number[rows] - result.num_groups / 2), kind="stable")]

    numbers = [len(disputed(image)) for image in images]
    shown: list[DisputedImage] = []
    for index in np.argsort(-np.array(numbers), kind="stable").tolist():
        if len(shown) == NUM_DISPUTED or numbers[index] == 0:
            break
        record = result.split.records[index]
        try:
            loaded = load_image(record.path, (record.width, record.height), record.upright)
        except DataError:  # It was removed since it was read.
            continue
        rows = disputed(images[index])[:MAX_DISPUTED_OBJECTS]
        is_detected = images[index].agreement.is_detected[rows]
        boxes = np.where(is_detected[..., None], images[index].groups.boxes[rows], np.nan)
        counts = images[index].agreement.num_groups[rows].tolist()
        caption = f"{record.file_name}: detected by " + ", ".join(map(str, counts))
        caption += f" of {result.num_groups} groups"
        object_boxes = images[index].objects.boxes[torch.from_numpy(rows)].double().numpy()
        shown.append(DisputedImage(loaded, caption, object_boxes, boxes))
    return shown


def calibrate_uncertainty(result: GroupsOnSplit, threshold: float) -> UncertaintyReport | None:
    """Return how well the uncertainty predicts errors, compared with 1 - score.

    It is measured on the detections of the answering group with a score of at least ``threshold``.
    None if there is none.
    """
    scores, totals, disagreements, is_false, box_error = [], [], [], [], []
    kind = result.task.kind
    for record, image in zip(result.split.records, result.images):
        all_detections = image.detections[result.answering]
        errors = detection_errors(record, all_detections, kind)
        is_kept = (all_detections.scores.numpy() >= threshold) & errors.is_counted
        kept = all_detections[torch.from_numpy(np.flatnonzero(is_kept))]
        scores.append(kept.scores.double().numpy())
        uncertainty = uncertainty_of(kept, image.detections, result.answering)
        totals.append(uncertainty.total)
        disagreements.append(uncertainty.disagreement)
        is_false.append(errors.is_false[is_kept])
        box_error.append(errors.box_error[is_kept])
    all_scores = np.concatenate(scores)
    if not len(all_scores):
        return None
    measures = {
        "1 - score": 1 - all_scores,
        "uncertainty of the groups": np.concatenate(totals),
        "their disagreement alone": np.concatenate(disagreements),
    }
    all_false = np.concatenate(is_false)
    calibrations = calibrate(measures, all_false, np.concatenate(box_error))
    curves = [_curve(name, calibration) for name, calibration in calibrations.items()]
    return UncertaintyReport(len(all_scores), int(all_false.sum()), threshold, curves)


def _curve(name: str, calibration: Calibration) -> UncertaintyCurve:
    return UncertaintyCurve(
        name,
        calibration.aurc,
        calibration.aurc_box,
        calibration.correlation,
        calibration.curve.tolist(),
    )


def _uncertainty_json(report: UncertaintyReport | None) -> JsonObject:
    if report is None:
        return {"detections": 0, "false_positives": 0, "measures": []}
    measures = []
    for measure in report.measures:
        numbers = {
            "aurc": measure.aurc,
            "aurc_box": measure.aurc_box,
            "correlation": measure.correlation,
        }
        curve = [round(value, 5) for value in measure.curve]
        measures.append({"name": measure.name, **nan_to_none(numbers), "curve": curve})
    return {
        "detections": report.detections,
        "false_positives": report.false,
        "measures": measures,
    }


def _query_map(use: QueryUse) -> QueryMap:
    shown = []
    for pair in use.twins:
        shown.append(
            ShownTwins(
                f"group {pair.group}, query {pair.query}",
                f"group {pair.other_group}, query {pair.other_query}",
                pair.distance,
                pair.wins,
                pair.shared_wins,
            )
        )
    return QueryMap(
        wins=use.wins,
        dead=use.dead,
        points=use.points,
        is_fixed=use.is_fixed,
        never_match=int(use.never_match.sum()),
        never_score=int(use.never_score.sum()),
        min_score=MIN_SCORE,
        num_twins=use.num_twins,
        with_twin=int(use.with_twin.sum()),
        twin_distance=TWIN_DISTANCE,
        twins=shown,
    )


def write_best_group(detector: Detector, group: int, threshold: float, file: Path) -> None:
    """Write the weights of a detector to a file in which another group answers.

    All commands take it for a weights file: the recipe in its metadata has the group as its
    ``inference_group``. ``threshold`` is the score threshold with the best F1 of this group.
    """
    metadata = native.read_metadata(detector.path)
    recipe = replace(detector.recipe, inference_group=group)
    metadata |= {"recipe": recipe_to_dict(recipe), "score_threshold": threshold}
    native.save(detector.model, file, metadata)


def _tables(report: GroupsReport, best_weights: str | None) -> list[MetricsTable]:
    """Return the tables that the command prints."""
    aps = [100 * group.stats["AP"] for group in report.groups]
    note = f"groups: median AP {statistics.median(aps):.1f}, from {min(aps):.1f} to {max(aps):.1f};"
    note += f" group {report.answering} answers, and group {report.best} is the best"
    tables = [MetricsTable(group_rows(report.groups), note)]
    fused = []
    for row in report.fused:
        (summary,) = summary_rows(row.evaluation)
        summary.pop("IoU")
        fused.append({"fused groups": str(row.groups), **summary})
    if fused:
        tables.append(MetricsTable(fused))
    objects = report.all_objects
    lines = [
        f"of {quantity(objects.objects, 'object')}, all groups detect {objects.detected_by[-1]}, "
        f"and none detects {objects.detected_by[0]}",
        f"{int(report.queries.dead.sum())} of {report.queries.dead.size} queries are dead",
    ]
    if report.uncertainty is not None:
        risks = [f"{row.name} {100 * row.aurc:.1f}" for row in report.uncertainty.measures]
        lines.append(f"AURC of the false positives: {', '.join(risks)}")
    if best_weights is not None:
        lines.append(f"weights in which group {report.best} answers: {best_weights}")
    tables.append(MetricsTable([], "\n".join(lines)))
    return tables
