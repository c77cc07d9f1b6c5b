"""What a training returns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from groupdetr.console.progress import format_duration, format_percent
from groupdetr.console.text import escape_html, quote
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import UsageError
from groupdetr.evaluation import coco, nuscenes
from groupdetr.evaluation.nan_json import none_to_nan
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.result_formats import format_html


@dataclass(frozen=True)
class TrainingResult:
    """The result of `train`. A notebook shows it as a table.

    >>> run = groupdetr.train("data/mine", model="dino-tiny", epochs=20)
    >>> detector = groupdetr.Detector(run.path)
    """

    path: Path  # the folder of the run
    groups: int  # K
    steps: int  # optimizer steps so far, those before a --resume included
    epochs: float  # passes over the training images so far
    seconds: float  # of training so far, without evaluations
    interrupted: bool = False  # True if Ctrl-C or SIGTERM stopped the training before its end

    @property
    def weights(self) -> Path:
        """The weights of the best evaluation, a .safetensors file."""
        return RunFolder(self.path).best

    @property
    def metrics(self) -> JsonObject:
        """The metrics of the best evaluation by name, such as "AP"; {} if there was none."""
        file = RunFolder(self.path).best_metrics
        if not file.is_file():
            return {}
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, RecursionError, TypeError, ValueError) as error:
            raise UsageError(
                f"the metrics of the best evaluation cannot be read: {error}",
                str(file),
                f"evaluate the run again: groupdetr val {quote(self.path)}",
            ) from error

    @property
    def exit_code(self) -> int:
        """0, or 130 as of any program that was interrupted."""
        return 130 if self.interrupted else 0

    def to_json(self) -> JsonObject:
        """Return what `groupdetr train --json` prints. Files that do not exist (yet) are None."""
        run = RunFolder(self.path)
        return {
            "run": str(self.path),
            "weights": str(run.best) if run.best.is_file() else None,
            "report": str(run.report) if run.report.is_file() else None,
            "groups": self.groups,
            "steps": self.steps,
            "epochs": self.epochs,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "metrics": self.metrics,
        }

    def _repr_html_(self) -> str:
        """Return a table of K, the length and the best metrics, and links, for notebooks."""
        row = {
            "K": str(self.groups),
            "epochs": f"{self.epochs:.4g}",
            "training time": format_duration(self.seconds),
        }
        metrics = none_to_nan(self.metrics)
        for name in (*coco.METRICS[:6], *nuscenes.METRICS[:2]):
            if name in metrics:
                row[name] = format_percent(metrics[name])
        links = []
        for file in (RunFolder(self.path).report, self.weights):
            if file.is_file():
                links.append(f'<a href="{escape_html(file.as_posix())}">{escape_html(file)}</a>')
        stopped = "<p>The training was interrupted.</p>" if self.interrupted else ""
        return f"{format_html([row])}{stopped}<p>{'<br>'.join(links)}</p>"
