"""The dataset that a user names with --data and --images, beside that of the run."""

from __future__ import annotations

import os
from pathlib import Path

from groupdetr.engine.run_folder import training_data
from groupdetr.errors import UsageError


def expect_data_with_images(data: str | Path | None, images: str | Path | None) -> None:
    """Raise `UsageError` if there is a folder of images, and no dataset that it belongs to."""
    if images is not None and data is None:
        raise UsageError(
            "--images has an effect with --data only",
            str(images),
            "add --data with the annotation file, or leave out --images",
        )


def is_training_data(run: Path, data: Path, images: Path | None) -> bool:
    """True if ``run`` is the folder of a run, and was trained on this dataset."""
    if not run.is_dir():
        return False
    own_data, own_images = training_data(run, "add --data DATA")
    if real_path(data) != real_path(own_data):
        return False
    return images is None or (own_images is not None and real_path(images) == real_path(own_images))


def real_path(path: str | Path) -> Path:
    """Return the path that the links in ``path`` lead to, which need not exist.

    Unlike `Path.resolve`, it raises nothing for a link that leads to itself.
    """
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a NUL character
        return Path(path)
