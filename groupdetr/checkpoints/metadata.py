"""Checks the metadata of weights files: they are data of somebody else, and may hold anything.

Numbers are bounded, so that no file can make this library fill the memory, and texts are short.
What the values mean is checked where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from groupdetr.checkpoints.file_format import MAX_SHOWN
from groupdetr.errors import WeightsError

MAX_SIZE = 2**20  # of a number that is the size of something
# Parts of the names of recipe fields that say how many modules there are, such as decoder_layers.
# Every module takes time to build, even if it is small.
COUNTS_OF_MODULES = ("layers", "levels", "blocks", "stages", "depth")
MAX_MODULES = 1000
MAX_IMGSZ = 2**13  # pixels, of the shortest side of an image
MAX_ID = 2**63  # of a category
MAX_TEXT = 1000  # characters of a name
MAX_ITEMS = 64  # of a list in a recipe
MAX_DEPTH = 3  # of lists inside of lists in a recipe
MAX_CATEGORIES = 2**16
UNTRUSTED = "get the file again from a source that you trust"


def check_native_metadata(metadata: Mapping[str, object], where: str) -> None:
    """Raise `WeightsError` unless the metadata of a file of this library have their types.

    These are the recipe, the categories and the image size. Each may be missing.
    """
    recipe = metadata.get("recipe", {})
    if not isinstance(recipe, Mapping):
        raise invalid("the recipe", recipe, "an object of fields", where)
    check_recipe_fields(recipe, where)
    categories = metadata.get("categories", [])
    if not isinstance(categories, list):
        raise invalid("the list of categories", categories, "a list", where)
    check_categories(categories, where)
    imgsz = metadata.get("imgsz", 1)
    if type(imgsz) is not int or not 1 <= imgsz <= MAX_IMGSZ:
        raise invalid("imgsz", imgsz, f"a number of pixels from 1 to {MAX_IMGSZ}", where)


def check_recipe_fields(fields: Mapping[str, object], where: str) -> None:
    """Raise `WeightsError` unless the fields of a recipe are bounded numbers, texts, or lists."""
    for name, value in fields.items():
        check_text("the name of a field of the recipe", name, where)
        is_count = any(part in name for part in COUNTS_OF_MODULES)
        _check_plain_value(name, value, MAX_MODULES if is_count else MAX_SIZE, where, MAX_DEPTH)


def _check_plain_value(name: str, value: object, largest: int, where: str, depth: int) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, list | tuple | dict) and depth:
        if len(value) > MAX_ITEMS:
            raise invalid(name, value, f"a list of at most {MAX_ITEMS} values", where)
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain_value(name, item, largest, where, depth - 1)
    elif isinstance(value, str):
        check_text(name, value, where)
    elif isinstance(value, int):
        if abs(value) > largest:
            raise invalid(name, value, f"a whole number of at most {largest}", where)
    elif not isinstance(value, float) or not math.isfinite(value):
        raise invalid(name, value, "a finite number, a text, or a list of these", where)


def check_categories(categories: Sequence[object], where: str) -> None:
    """Raise `WeightsError` unless categories are pairs of an id and a name.

    An id is a whole number or a text, and no two categories have the same.
    """
    if len(categories) > MAX_CATEGORIES:
        raise invalid(
            "the number of categories", len(categories), f"at most {MAX_CATEGORIES}", where
        )
    ids = set()
    for row, category in enumerate(categories):
        if not isinstance(category, list | tuple) or len(category) != 2:
            raise invalid(f"category {row}", category, "a pair of an id and a name", where)
        category_id, name = category
        if isinstance(category_id, str):
            check_text(f"the id of category {row}", category_id, where)
        elif type(category_id) is not int or abs(category_id) >= MAX_ID:
            expected = "a whole number or a text"
            raise invalid(f"the id of category {row}", category_id, expected, where)
        check_text(f"the name of category {row}", name, where)
        if category_id in ids:
            raise invalid(f"the id of category {row}", category_id, "an id of its own", where)
        ids.add(category_id)


def check_text(name: str, value: object, where: str) -> None:
    """Raise `WeightsError` unless a value is a text of a reasonable length."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise invalid(name, value, f"a text of at most {MAX_TEXT} characters", where)


def invalid(name: str, value: object, expected: str, where: str) -> WeightsError:
    """Return the error for a value of the metadata that cannot be used."""
    name = name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}..."
    return WeightsError(
        f"the metadata of this file cannot be used: {name} is {_shown(value)}, not {expected}",
        where,
        UNTRUSTED,
    )


def _shown(value: Any) -> str:
    """Return a value of a file as a short text."""
    if isinstance(value, int) and abs(value) > 10**MAX_SHOWN:
        return f"a number of {int(abs(value).bit_length() * math.log10(2)) + 1} digits"
    if isinstance(value, str):
        value = value[: MAX_SHOWN + 1]
    elif not isinstance(value, int | float | None | bool):
        # It may be a list of millions of values, or an object of any class.
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
