"""The part of the demo that depends on the task: data, settings, and sections of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from groupdetr.report.demo import ReportSubject
from groupdetr.report.page import Html
from groupdetr.settings import Settings


@dataclass(frozen=True)
class DemoSpec:
    """The demo of a task: a synthetic dataset, settings of short trainings, and page sections."""

    # Writes the dataset to a folder, unless the folder holds it already.
    write_data: Callable[[Path], None]
    num_train: int  # training images or samples
    config: object  # the configuration of the synthetic data
    description: str  # of the data, for the console and the page
    settings: Settings
    # The kind of the task ("box", "mask" or "box3d") -> what the page compares.
    subject: Callable[[str], ReportSubject]
    # The folder of the data, and the folders of runs by name -> sections that show detections.
    sections: Callable[[Path, Mapping[str, Path]], Sequence[Html]]
