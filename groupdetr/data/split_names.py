"""Names of splits, as folders, files and descriptions of datasets have them."""

from __future__ import annotations

import os
from pathlib import Path

from groupdetr.data.findings import printable, refused

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
    train/images. The folder of a split itself is returned: images/train and train. If there are
    several of one split, it is the last one; `expect_one_folder` refuses them.
    """
    return {split: folders[-1] for split, folders in _folders_by_split(root).items()}


def expect_one_folder(root: Path) -> None:
    """Raise `RefusedError` if two folders have names of the same split, such as val and dev."""
    for split, folders in _folders_by_split(root).items():
        if len(folders) > 1:
            one, other = (printable(path.relative_to(root).as_posix()) for path in folders[:2])
            raise refused("unknown-layout", root, f"its {split} split could be {one} or {other}")


def _folders_by_split(root: Path) -> dict[str, list[Path]]:
    for parent in (root / "images", root / "Images", root):
        if not parent.is_dir():
            continue
        folders: dict[str, list[Path]] = {}
        for name in sorted(os.listdir(parent)):
            split = SPLIT_ALIASES.get(name.lower())
            if split and (parent / name).is_dir():
                folders.setdefault(split, []).append(parent / name)
        if folders:
            return folders
    return {}
