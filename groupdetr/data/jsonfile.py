"""Reading one JSON object from a file that may be anything."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from groupdetr.data.findings import Findings, shown


def read_object(path: Path, found: Findings) -> dict[str, Any] | None:
    """The object in ``path``; None, and a finding, where there is none."""
    raw = _read_bytes(path, found)
    if raw is None:
        return None
    if not raw.isascii() and json.detect_encoding(raw) != "utf-8":
        found.add("json-encoding", "", f"it is written in {json.detect_encoding(raw)}")
    try:
        content = json.loads(raw, object_pairs_hook=_unique_keys(found))
    except RecursionError:
        found.add("json-too-deep", "", "its lists and objects are nested too deeply")
        return None
    except (
        ValueError
    ) as error:  # JSONDecodeError, UnicodeDecodeError, and numbers of thousands of digits
        found.add("not-json", "", f"it is not JSON ({error})")
        return None
    if not isinstance(content, dict):
        found.add("json-not-coco", "", f"it holds {_kind(content)} instead of an object")
        return None
    return content


def _read_bytes(path: Path, found: Findings) -> bytes | None:
    if not os.path.isfile(path):  # a FIFO would block for ever
        found.add(
            "missing-annotations",
            "",
            "it is not a file" if os.path.exists(path) else "there is no such file",
        )
        return None
    try:
        raw = path.read_bytes()
    except OSError as error:
        found.add("missing-annotations", "", f"it cannot be read ({error.strerror})")
        return None
    if not raw.strip():
        found.add("not-json", "", "it is empty")
        return None
    if raw[:2] in (b"\x1f\x8b", b"PK"):
        found.add("not-json", "", "it is compressed; unpack it first")
        return None
    return raw


def _unique_keys(found: Findings) -> Any:
    """A hook that builds dicts and reports keys that occur twice in one object."""

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) != len(pairs):
            twice = sorted(
                key for key, times in Counter(key for key, _ in pairs).items() if times > 1
            )
            found.add(
                "duplicate-key", _record(built), f"it has {', '.join(map(shown, twice[:5]))} twice"
            )
        return built

    return build


def _record(value: dict[str, Any]) -> str:
    return f"object with id {shown(value['id'])}" if "id" in value else ""


def _kind(value: Any) -> str:
    names = {
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")
