"""Conversion of JSON values to ids, numbers, boxes and image sides. It never raises an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from groupdetr.data.findings import Findings

Id = int | str

_NUMBER_TYPES = frozenset({int, float})  # not bool
_LARGEST_SIDE = 10**6  # pixels


def parse_id(value: object) -> Id | None:
    """Return an id, a whole number of at most 64 bits or a text; None for any other value."""
    if type(value) is int:  # not isinstance: a bool is an int in Python, but not an id
        return value if -(2**63) <= value < 2**63 else None
    if type(value) is float:
        return int(value) if value.is_integer() and abs(value) < 2**53 else None
    return value if type(value) is str and value else None


def report_id_types(ids: Sequence[object], kind: str, findings: Findings) -> None:
    """Add one finding for each type of id that other tools have problems with.

    ``kind`` is what the ids belong to, such as "image".
    """
    types = Counter(type(value) for value in ids if parse_id(value) is not None)
    if types[str]:
        findings.add("text-id", "", f"{types[str]} of the {kind} ids are text")
    if types[float]:
        what = f"{types[float]} of the {kind} ids are numbers with a decimal point"
        findings.add("float-id", "", what)


def parse_side(value: object) -> int | None:
    """Return the width or height of an image in whole pixels, None for any other value."""
    number = parse_id(value)
    return number if isinstance(number, int) and 0 < number <= _LARGEST_SIDE else None


def parse_number(value: object) -> float | None:
    """Return a JSON number as a float; None for text, true, false, null and any other value."""
    floats = parse_numbers([value])
    return floats[0] if floats else None


def parse_box(value: object) -> list[float] | None:
    """Return a list of four numbers as floats, finite or not; None for any other value."""
    return parse_numbers(value) if type(value) is list and len(value) == 4 else None


def parse_numbers(values: list[Any]) -> list[float] | None:
    """Return JSON numbers as floats, finite or not; None if any value is not a number."""
    if not _NUMBER_TYPES.issuperset(map(type, values)):
        return None
    try:
        return list(map(float, values))
    except OverflowError:  # a whole number of hundreds of digits
        return [float("inf")] * len(values)
