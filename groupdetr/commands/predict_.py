"""groupdetr predict: annotated pictures, and what was found in them as JSON."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from groupdetr.errors import DataError, GroupDETRError, UsageError

if TYPE_CHECKING:
    from groupdetr.predictor import Result

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif", ".jp2", ".ppm"}


@dataclass(frozen=True)
class Options:
    """Find objects in pictures: writes annotated copies and predictions.json."""

    run_: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run, or a weights file of this library."""
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")]
    """Files, folders (searched through) and globs."""
    score: float = 0.5
    """The least score to report."""
    imgsz: int | None = None
    """Shortest side the network sees; None: as trained."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    out: Path | None = None
    """Folder to write to. None: RUN/predict."""
    json: bool = False
    """Print the predictions as JSON instead of a line for each picture."""

    def run(self) -> int:
        import json

        from rich.progress import track

        from groupdetr.engine.run import write_json
        from groupdetr.predictor import Detector

        if not self.pictures:
            raise UsageError("no pictures given", remedy="groupdetr predict RUN photo.jpg folder/ '*.png'")
        paths = [path for pattern in self.pictures for path in found(pattern)]
        detector = Detector(self.run_, self.device, self.imgsz)
        out = self.out or (self.run_ if self.run_.is_dir() else self.run_.parent) / "predict"
        out.mkdir(parents=True, exist_ok=True)
        names, content, failed = targets(paths, out), [], []
        for path, target in track(zip(paths, names), "predict", len(paths), transient=True, disable=self.json):
            try:
                (result,) = detector.predict(path, self.score)
            except DataError as error:
                failed.append(error)
                continue
            result.save(target)
            content.append(described(result, path, target))
        write_json(out / "predictions.json", content)
        print(json.dumps(content, indent=1)) if self.json else report(content, out)
        if failed:
            raise summary(failed, len(paths))
        return 0


def found(pattern: str) -> list[Path]:
    """The pictures that a file, a folder or a glob names, in a fixed order."""
    path = Path(pattern)
    if path.is_dir():
        paths = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
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
    rows = zip(result.ids, result.names, found.scores.tolist(), found.boxes.tolist(), found.segmentations())
    detections = [
        {"category_id": key, "name": name, "score": round(score, 6), "box": [round(v, 3) for v in box]} | mask
        for key, name, score, box, mask in rows
    ]
    size = {"width": result.image.width, "height": result.image.height}
    return {"file": str(path), **size, "annotated": target.name, "detections": detections}


def report(content: list[dict[str, Any]], out: Path) -> None:
    for picture in content:
        names = [detection["name"] for detection in picture["detections"]]
        counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nothing"
        print(f"{picture['file']}: {counts}")
    print(f"{len(content)} pictures, annotated, and predictions.json: {out}")


def summary(failed: list[DataError], total: int) -> GroupDETRError:
    what = f"{len(failed)} of {total} pictures could not be read; the others are done"
    return DataError(what, "\n         ".join(error.where for error in failed[:10]), failed[0].remedy)
