"""What a demo trains on, and what its page shows: the part that is of pictures or of scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from groupdetr.report.demo import Subject
from groupdetr.report.page import Html
from groupdetr.settings import Settings


@dataclass(frozen=True)
class Exhibit:
    """Drawn data, a training of minutes on it, and what becomes of it."""

    draw: Callable[[Path], None]  # the data set, into a folder; what is there already is kept
    count: int  # of what is trained on in an epoch
    config: object  # all that the data are drawn from
    about: str  # them, in words
    settings: Settings
    subject: Callable[[str], Subject]  # what the page speaks of, by the kind of what is found
    sections: Callable[
        [Path, Mapping[str, Path]], Sequence[Html]
    ]  # of the data, and of a run by each name
