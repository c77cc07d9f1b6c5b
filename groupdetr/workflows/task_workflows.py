"""What the command line does with a detector, by what it sees: pictures, or scenes of several cameras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupdetr.cli.options import predict as predict_
from groupdetr.cli.options import val as val_
from groupdetr.engine.run_folder import RunFolder
from groupdetr.tasks.demo_spec import Exhibit
from groupdetr.tasks.detection2d import pictures, validation
from groupdetr.tasks.detection3d import demo, prediction, report
from groupdetr.tasks.detection3d import validation as of_scenes


@dataclass(frozen=True)
class Verbs:
    """Of one kind of detector."""

    report: Callable[[RunFolder], Path]  # writes the page of a run
    predict: Callable[[predict_.Options], None]
    validate: Callable[[val_.Options], dict[str, Any]]  # returns what metrics.json holds
    exhibit: Exhibit  # of the demo
    asks: str  # what predict is given beside a run, for hints


VERBS = {
    "pictures": Verbs(
        pictures.report, pictures.predict, validation.validate, pictures.EXHIBIT, "PICTURES"
    ),
    "scenes": Verbs(
        report.report, prediction.predict, of_scenes.validate, demo.EXHIBIT, "NUSCENES"
    ),
}


def verbs_for(task: Any) -> Verbs:
    """``task``: one of the classes in tasks/, or what one made."""
    return VERBS[task.sees]
