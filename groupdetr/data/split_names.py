"""Names of splits, as folders, files and descriptions of datasets have them."""

from __future__ import annotations

import os
from pathlib import Path

SPLIT_ALIASES = {  # name in a path or in a file -> split
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of a dataset that have the name of a split.

    They are in ``images`` or ``Images`` if they are there, as images/train, else in ``root``, as
    train/images. The folder of a split itself is returned: images/train and train.
    """
    for parent in (root / "images", root / "Images", root):
        if not parent.is_dir():
            continue
        folders = {}
        for name in sorted(os.listdir(parent)):
            split = SPLIT_ALIASES.get(name.lower())
            if split and (parent / name).is_dir():
                folders[split] = parent / name
        if folders:
            return folders
    return {}
