"""Reading of one JSON object from a file whose content may be anything."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from groupdetr.data.findings import Findings, printable
from groupdetr.files.kinds import is_lfs_pointer
from groupdetr.structures.json_object import JsonObject


def read_object(path: Path, findings: Findings) -> JsonObject | None:
    """Return the JSON object in ``path``. Without one, return None and add a finding."""
    raw = read_bytes(path, findings)
    return None if raw is None else parse_object(raw, findings)


def parse_object(raw: bytes, findings: Findings) -> JsonObject | None:
    """Return the JSON object that the text of a file is, or None with a finding."""
    if not raw.isascii() and json.detect_encoding(raw) != "utf-8":
        findings.add("json-encoding", "", f"its encoding is {json.detect_encoding(raw)}")
    try:
        content = json.loads(raw, object_pairs_hook=_report_duplicate_keys(findings))
    except RecursionError:
        findings.add("json-too-deep", "", "its lists and objects are nested too deeply")
        return None
    # JSONDecodeError, UnicodeDecodeError, and numbers of thousands of digits
    except ValueError as error:
        findings.add("not-json", "", f"it is not JSON ({error})")
        return None
    if not isinstance(content, dict):
        findings.add("json-not-coco", "", f"it holds {_type_name(content)} instead of an object")
        return None
    return content


def read_bytes(path: Path, findings: Findings) -> bytes | None:
    """Return the content of a file, None with a finding if it is surely no JSON."""
    if not os.path.isfile(path):  # opening a FIFO would block for ever
        what = "it is not a file" if os.path.exists(path) else "there is no such file"
        findings.add("missing-annotations", "", what)
        return None
    try:
        raw = path.read_bytes()
    except OSError as error:
        findings.add("missing-annotations", "", f"it cannot be read ({error.strerror})")
        return None
    if not raw.strip():
        findings.add("not-json", "", "it is empty")
        return None
    if is_lfs_pointer(raw):
        findings.add("lfs-pointer", "", "it is a pointer of Git LFS, not the file itself")
        return None
    if raw[:2] in (b"\x1f\x8b", b"PK"):  # gzip, zip
        findings.add("not-json", "", "it is compressed; unpack it first")
        return None
    return raw


def _report_duplicate_keys(
    findings: Findings,
) -> Callable[[list[tuple[str, object]]], JsonObject]:
    """Return a hook for `json.loads` that builds dicts and reports keys that occur twice."""

    def build(pairs: list[tuple[str, object]]) -> JsonObject:
        content = dict(pairs)
        if len(content) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            duplicates = sorted(key for key, count in counts.items() if count > 1)
            keys = ", ".join(printable(key) for key in duplicates[:5])
            findings.add("duplicate-key", _record_name(content), f"it has {keys} twice")
        return content

    return build


def _record_name(content: JsonObject) -> str:
    return f"object with id {printable(content['id'])}" if "id" in content else ""


def _type_name(value: object) -> str:
    names = {
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")
