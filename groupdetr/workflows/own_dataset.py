"""Whether a dataset that a user names is the one that a run was trained on."""

from __future__ import annotations

import os
from pathlib import Path

from groupdetr.engine.run_folder import training_data


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
