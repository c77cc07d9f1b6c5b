"""Compares the JSON output of a command with the tables of docs/json.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[1] / "docs/json.md").read_text(encoding="utf-8")
LINK = re.compile(r"\[[^]]*\]\(#([^)]*)\)")
SAME_LEVEL = "..."  # a row for all keys of another table

Key = tuple[str, ...]  # "per_class[].AP" is ("per_class", "[]", "AP")
Keys = dict[Key, set[str]]  # the types of every key


def assert_documented(title: str, value: Any) -> None:
    """Assert that a section describes every key of a value, and no other key, with its types.

    The title is that of the section of docs/json.md.
    """
    problems = [list(differences(keys, value)) for keys in variants(title)]
    assert [] in problems, "\n".join(min(problems, key=len))


def variants(title: str) -> list[Keys]:
    """Return what a section documents. Rows that link several tables give several variants."""
    anchor = title.lower().replace(":", "").replace(" ", "-")
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    texts = {heading(text).lower().replace(":", "").replace(" ", "-"): text for text in sections}
    rows: list[list[Keys]] = []  # of every row, its variants
    for line in texts[anchor].splitlines():
        if not line.startswith("| `"):
            continue
        key_cell, type_cell, *_ = line.strip("| ").split(" | ")
        for text in re.findall(r"`([^`]*)`", key_cell):
            key = () if text == SAME_LEVEL else parse(text)
            types = set(LINK.sub("", type_cell).replace(",", " ").split()) - {"of", "or"}
            own: Keys = {key: types} if key else {}
            linked = LINK.findall(type_cell)
            below = [variant for link in linked for variant in variants(link)] or [{}]
            rows.append([own | {key + k: t for k, t in keys.items()} for keys in below])
    result = []
    for choice in product(*rows):
        result.append({key: types for keys in choice for key, types in keys.items()})
    return result


def heading(section: str) -> str:
    return section.splitlines()[0] if section else ""


def parse(text: str) -> Key:
    return tuple(part for part in re.split(r"\.|(\[\])", text) if part)


def differences(documented: Keys, value: Any) -> Iterator[str]:
    """Yield the keys that differ. A key that is documented with any type has no keys below it."""
    used = set()
    for key, kind in keys_of(value):
        matching = [k for k in documented if is_match(k, key)]
        above = [k for k in documented if documented[k] == {"any"} and is_match(k, key[: len(k)])]
        used.update(matching, above)
        if not matching and not above:
            yield f"{'.'.join(key)} is not documented"
        elif not above and not any(has_type(documented[k], kind) for k in matching):
            yield f"{'.'.join(key)} is documented as {documented[matching[0]]}, but it is {kind}"
    for key in documented.keys() - used:
        yield f"{'.'.join(key)} is documented, but it is not in the output"


def keys_of(value: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Yield every key of JSON data with the type of its value."""
    if key:
        yield key, json_type(value)
    if isinstance(value, dict):
        for name, item in value.items():
            yield from keys_of(item, (*key, name))
    # Arrays of texts, such as the names of GPUs, have no keys.
    elif isinstance(value, list) and not all(isinstance(item, str) for item in value):
        for item in value:
            yield from keys_of(item, (*key, "[]"))


def is_match(documented: Key, key: Key) -> bool:
    if len(documented) != len(key):
        return False
    return all(a == b or (a == "*" and b != "[]") for a, b in zip(documented, key))


def json_type(value: Any) -> str:
    names = {
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "string",
        list: "array",
        dict: "object",
        type(None): "null",
    }
    return names[type(value)]


def has_type(documented: set[str], kind: str) -> bool:
    # An integer is a number.
    return kind in documented or (kind == "integer" and "number" in documented)
