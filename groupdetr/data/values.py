"""What a JSON value can stand for: an id, a number, a box, a side of a picture. Never raises, whatever it is given."""

from __future__ import annotations

from collections import Counter
from typing import Any

from groupdetr.data.findings import Findings

Id = int | str

_NUMBERS = frozenset({int, float})  # not bool
_LARGEST_SIDE = 10**6  # pixels


def identity(value: Any) -> Id | None:
    """An id: a whole number of at most 64 bits or a text; None for what cannot be one."""
    if type(value) is int:  # not isinstance: true is no id, although Python counts it as 1
        return value if -(2**63) <= value < 2**63 else None
    if type(value) is float:
        return int(value) if value.is_integer() and abs(value) < 2**53 else None
    return value if type(value) is str and value else None


def note_types(ids: list[Any], of: str, found: Findings) -> None:
    """One finding for the whole file where ids are of a kind that other tools stumble over."""
    types = Counter(type(value) for value in ids if identity(value) is not None)
    for kind, code, words in (
        (str, "text-id", "text"),
        (float, "float-id", "numbers with a decimal point"),
    ):
        if types[kind]:
            found.add(code, "", f"{types[kind]} of the {of} ids are {words}")


def side(value: Any) -> int | None:
    """The width or height of a picture in whole pixels."""
    whole = identity(value)
    return whole if isinstance(whole, int) and 0 < whole <= _LARGEST_SIDE else None


def number(value: Any) -> float | None:
    """A JSON number as a float; None for texts, true, false, null and the rest."""
    floats = numbers([value])
    return floats[0] if floats else None


def four_numbers(value: Any) -> list[float] | None:
    """A list of four numbers as floats, finite or not; None for anything else."""
    return numbers(value) if type(value) is list and len(value) == 4 else None


def numbers(values: list[Any]) -> list[float] | None:
    """JSON numbers as floats, finite or not; None where anything else is among them."""
    if not _NUMBERS.issuperset(map(type, values)):
        return None
    try:
        return list(map(float, values))
    except OverflowError:  # a whole number of hundreds of digits
        return [float("inf")] * len(values)
