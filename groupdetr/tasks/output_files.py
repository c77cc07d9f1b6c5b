"""Files that commands write. They replace only files that an earlier run of the command wrote.

An option --out may lead to the folder of the input, to the input itself, or to a folder with files
of the user that happen to have the same names. Then nothing is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from groupdetr.errors import UsageError
from groupdetr.files.replacing import same_file
from groupdetr.structures.json_object import JsonObject

# How the predictions.json begins that predict writes: of images, or of scenes.
_PREDICTIONS = re.compile(rb'\s*(\[\s*(\]|\{\s*"file":)|\{\s*"meta":)')


def expect_outside_dataset(out: Path, folders: Iterable[Path]) -> None:
    """Raise `UsageError` if an output folder is one of the ``folders`` of a dataset.

    Files that are added there may hide the dataset: a folder with two .json files has another
    layout. Other subfolders may be used.
    """
    if any(folder.is_dir() and same_file(folder, out) for folder in folders):
        raise UsageError(
            "the output folder is a folder of the dataset",
            str(out),
            "choose another folder with --out",
        )


def dataset_folders(metadata: JsonObject) -> list[Path]:
    """Return the folders of a dataset, given its metadata.

    The folder of an annotation file that a user named, with its images elsewhere, is not one.
    """
    root = Path(metadata["root"])
    folders = [root]
    for split in metadata["splits"].values():
        if "images_dir" in split:
            folders.append(Path(split["images_dir"]))
        if "annotations" in split and root.is_dir():
            folders.append(Path(split["annotations"]).parent)
    return folders


def has_json_keys(path: Path, keys: Sequence[str]) -> bool:
    """True if a file holds a JSON object with these keys."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= set(keys)


def is_predictions(path: Path) -> bool:
    """True if a file begins like the predictions.json of `groupdetr predict`."""
    try:
        with path.open("rb") as file:
            return _PREDICTIONS.match(file.read(1000)) is not None
    except OSError:
        return False
