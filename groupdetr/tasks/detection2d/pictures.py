"""What verbs of the command line do for detectors of pictures."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from groupdetr.analysis.matched_queries import matched_queries
from groupdetr.cli.options.predict import Options
from groupdetr.data.images import load_image
from groupdetr.data.synthetic import write
from groupdetr.engine.run_folder import RunFolder, write_json
from groupdetr.errors import DataError, UsageError, unread
from groupdetr.evaluation.coco import BOX_FIGURES, FIGURES, Evaluation
from groupdetr.experiments import DEMO, DEMO_COUNTS, DEMO_DATA
from groupdetr.report.page import Html, prose, section
from groupdetr.report.panels import DetectionPanel, GroupPanel, detection_strips, group_gallery
from groupdetr.report.run import RunReport, write_run_report
from groupdetr.report.run_summary import about, summary
from groupdetr.tasks.demo_spec import Exhibit, Subject
from groupdetr.tasks.detection2d.prediction import Detector, Result
from groupdetr.tasks.detection2d.task import DetectionTask

PANELS = 8  # pictures on the page of a run
DEMO_PANELS, GROUP_PANELS = 6, 6  # and on that of a demo
SCORE = 0.5  # the least that is reported
SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".avif",
    ".jp2",
    ".ppm",
}


# report


def report(run: RunFolder) -> Path:
    """Write report.html of a run that has been evaluated at least once."""
    config = run.read_config()
    detector = Detector(run.path, "cpu")
    task = detector.task_on(detector.task.read(config["data"], config["images"]))
    panels = [
        detection_panel(task, {"found": detector}, index)
        for index in range(min(PANELS, len(task.val)))
    ]
    card = json.loads(run.data.read_text())
    splits = {name: f"{split['images']} pictures" for name, split in card["splits"].items()}
    content = RunReport(
        run.path.name,
        config["model"],
        summary(run),
        evaluation(run),
        detector.names,
        panels,
        {"data": card["root"], **splits, "classes": len(card["categories"])},
        about(config, detector.recipe),
    )
    write_run_report(run.report, content)
    return run.report


def evaluation(run: RunFolder) -> Evaluation:
    """The best one, as it was written."""
    return Evaluation.from_json(json.loads((run.val / "metrics.json").read_text()))


def detection_panel(
    task: DetectionTask, detectors: Mapping[str, Detector], index: int
) -> DetectionPanel:
    """Val picture ``index``, what is in it, and what each detector finds."""
    record = task.val.records[index]
    found = {
        name: detector.predict(record.path, score=0.0)[0].detections
        for name, detector in detectors.items()
    }
    return DetectionPanel(load_image(record.path), task.truth(index), found)


# predict


def predict(options: Options) -> None:
    """Write annotated copies and predictions.json."""
    if not options.pictures:
        raise UsageError(
            "no pictures given", remedy="groupdetr predict RUN photo.jpg folder/ '*.png'"
        )
    paths = [path for pattern in options.pictures for path in found(pattern)]
    detector, out = Detector(options.run_, options.device, options.imgsz), options.folder
    names, content, failed = targets(paths, out), [], []
    for path, target in track(
        zip(paths, names), "predict", len(paths), transient=True, disable=options.json
    ):
        try:
            (result,) = detector.predict(path, SCORE if options.score is None else options.score)
        except DataError as error:
            failed.append(error)
            continue
        result.save(target)
        content.append(described(result, path, target))
    write_json(out / "predictions.json", content)
    print(json.dumps(content, indent=1)) if options.json else tell(content, out)
    if failed:
        raise unread(failed, len(paths), "pictures")


def found(pattern: str) -> list[Path]:
    """The pictures that a file, a folder or a glob names, in a fixed order."""
    path = Path(pattern)
    if path.is_dir():
        paths = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    elif path.exists():
        paths = [path]
    else:
        paths = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    if not paths:
        raise UsageError("no pictures there", pattern, "pass files, folders or globs of pictures")
    return paths


def targets(paths: list[Path], out: Path) -> list[Path]:
    """A file in ``out`` for each picture; pictures of one name in several folders do not overwrite each other."""
    names: set[str] = set()
    result = []
    for path in paths:
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}-{number}"
        names.add(name)
        result.append(out / f"{name}.{'png' if path.suffix.lower() == '.png' else 'jpg'}")
    return result


def described(result: Result, path: Path, target: Path) -> dict[str, Any]:
    """One picture's detections, with the data set's own class ids; masks as COCO's compressed run lengths."""
    found = result.detections
    rows = zip(
        result.ids, result.names, found.scores.tolist(), found.boxes.tolist(), found.segmentations()
    )
    detections = [
        {
            "category_id": key,
            "name": name,
            "score": round(score, 6),
            "box": [round(v, 3) for v in box],
        }
        | mask
        for key, name, score, box, mask in rows
    ]
    size = {"width": result.image.width, "height": result.image.height}
    return {"file": str(path), **size, "annotated": target.name, "detections": detections}


def tell(content: list[dict[str, Any]], out: Path) -> None:
    for picture in content:
        names = [detection["name"] for detection in picture["detections"]]
        counts = (
            ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nothing"
        )
        print(f"{picture['file']}: {counts}")
    print(f"{len(content)} pictures, annotated, and predictions.json: {out}")


# demo

SAID = {  # what is drawn of a query, by what is found
    "box": "the box and the reference point",
    "mask": "the box around the mask, and its middle,",
}


def draw(folder: Path) -> None:
    write(DEMO_DATA, folder, DEMO_COUNTS)


def subject(kind: str) -> Subject:
    caption = f"COCO {kind} AP on the validation pictures, in points, after the last epoch."
    return Subject("drawn shapes", (*FIGURES[:6], *BOX_FIGURES), caption)


def sections(data: Path, runs: Mapping[str, Path]) -> list[Html]:
    """What each run finds, and what every group of the last one does."""
    detectors = {name: Detector(run, "cpu") for name, run in runs.items()}
    *_, grouped = detectors.values()
    task = grouped.task_on(grouped.task.read(data, None))
    panels = [
        detection_panel(task, detectors, index) for index in range(min(DEMO_PANELS, len(task.val)))
    ]
    places = range(DEMO_PANELS, min(DEMO_PANELS + GROUP_PANELS, len(task.val)))
    groups = [group_panel(task, grouped, index) for index in places]
    return [
        what_they_find(panels, grouped.names, task.kind),
        queries_of_every_group(groups, task.kind),
    ]


def what_they_find(panels: Sequence[DetectionPanel], names: Sequence[str], kind: str) -> Html:
    words = (
        "Pictures that no run was trained on. Of each detector as many detections are drawn as the picture has "
        "objects, the surest first: a common score threshold would favour whichever is the more confident. An "
        f"object counts as found when a detection of its class covers it with a {kind} IoU of 0.5."
    )
    return section("What they find", prose(words), detection_strips(panels, names))


def queries_of_every_group(panels: Sequence[GroupPanel], kind: str) -> Html:
    words = (
        f"For some objects (white), {SAID[kind]} of the query that each group assigned to it. As in the "
        "paper's Fig. 3, the groups look at the same thing from different places, like augmentations of one query."
    )
    return section("One object, a query of every group", prose(words), group_gallery(panels))


def group_panel(task: DetectionTask, detector: Detector, index: int) -> GroupPanel:
    matched = matched_queries(detector.model, detector.recipe.criterion(), task.val, index)
    image = load_image(task.val.records[index].path)
    return GroupPanel(image, matched.boxes, matched.said, matched.points)


EXHIBIT = Exhibit(
    draw,
    DEMO_COUNTS["train"],
    DEMO_DATA,
    f"{DEMO_COUNTS['train']} training and {DEMO_COUNTS['val']} validation pictures",
    DEMO,
    subject,
    sections,
)
