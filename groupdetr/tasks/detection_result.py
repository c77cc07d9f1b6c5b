"""What the detections in an image and those in a scene have in common."""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupdetr.errors import UsageError
from groupdetr.files.replacing import same_file
from groupdetr.settings import is_number
from groupdetr.structures.detections import Detections
from groupdetr.structures.detections3d import Detections3D
from groupdetr.tasks.annotated_images import save_annotated
from groupdetr.tasks.result_formats import format_counts
from groupdetr.visualize.display import display_in_notebook, in_notebook, open_image

NOTEBOOK_WIDTH = 1024  # pixels of an image in a notebook, at most


class DetectionResult(ABC):
    """The detections in one image or in one scene, sorted by decreasing score."""

    detections: Detections | Detections3D
    best_score: float | None  # the highest of all scores, those below the threshold included

    @property
    @abstractmethod
    def class_names(self) -> Sequence[str]:
        """The names of all classes of the detector. Labels are indices into it."""

    @property
    @abstractmethod
    def source_files(self) -> Sequence[Path]:
        """The files of the original images. It is empty for images that came from no file."""

    @abstractmethod
    def draw(self) -> Image.Image:
        """Return the annotated image."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """[D] in [0,1]."""
        scores: NDArray[np.float32] = self.detections.scores.numpy()
        return scores

    @property
    def labels(self) -> NDArray[np.int64]:
        """[D] class indices."""
        labels: NDArray[np.int64] = self.detections.labels.numpy()
        return labels

    @property
    def names(self) -> list[str]:
        """The class name of every detection."""
        return [self.class_names[label] for label in self.labels]

    @property
    def captions(self) -> list[str]:
        """The class name and the score of every detection, as they are drawn."""
        return [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores)]

    def __len__(self) -> int:
        return len(self.detections)

    def __repr__(self) -> str:
        """Return a short text. A notebook stores it together with the image."""
        return f"<{type(self).__name__}: {self.counts}>"

    @property
    def counts(self) -> str:
        """How many objects of each class were detected, as text: "3 car, 1 bus".

        If there is none, it has the highest score.
        """
        if len(self) or self.best_score is None:
            return format_counts(self.names)
        return f"no objects (best score {self.best_score:.3g})"

    def save(self, path: str | Path) -> None:
        """Write the annotated image. The ending of the name decides about the format.

        `UsageError` if it would replace the original image.
        """
        path = Path(path)
        if any(same_file(source, path) for source in self.source_files):
            raise UsageError(
                "the annotated image would replace the original image",
                str(path),
                "save it under another name",
            )
        save_annotated(self.draw(), path)

    def show(self) -> None:
        """Show the annotated image in the notebook, or in the image viewer of the system.

        `UsageError` if the machine has no screen: then use `save`.
        """
        if in_notebook():
            display_in_notebook(self)
        else:
            open_image(self.draw())

    def _repr_png_(self) -> bytes:
        """Return the annotated image as a PNG file, for notebooks."""
        image = self.draw()
        if image.width > NOTEBOOK_WIDTH:
            height = max(1, round(image.height * NOTEBOOK_WIDTH / image.width))
            image = image.resize((NOTEBOOK_WIDTH, height))
        file = io.BytesIO()
        image.save(file, format="PNG")
        return file.getvalue()


def expect_score(score: float) -> None:
    """Raise `UsageError` unless a score threshold is a number from 0 to 1."""
    if not (is_number(score) and 0 <= score <= 1):
        raise UsageError(
            f"score must be a number from 0 to 1, not {score!r}", remedy="--score 0.5, for example"
        )


def hint_at_lower_score(best_scores: Sequence[float], min_score: float) -> str:
    """Return a line for detections that are all below the score threshold, otherwise "".

    ``best_scores`` are the highest scores in each image.
    """
    best = max(best_scores, default=0.0)
    if best >= min_score or best <= 0:
        return ""
    # The first digit of the best score, so that at least one detection is shown.
    unit = 10.0 ** math.floor(math.log10(best))
    lower = math.floor(best / unit) * unit
    return (
        f"no detection has a score of {min_score:g} or more; the best score is {best:.3g}; "
        f"to see it: --score {lower:g}"
    )
