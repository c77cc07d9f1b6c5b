"""The output of a command with --json: one JSON value (docs/json.md describes the keys)."""

from __future__ import annotations

import json
import math
from typing import Any


def print_json(result: Any) -> None:
    """Print the result of a command: its ``to_json()`` if it has one, otherwise the result itself.

    If several processes run the command, only the main process prints.
    """
    # Imported here: it imports torch, and `groupdetr --help` does not.
    from groupdetr.engine.accelerator import is_main_process

    if not is_main_process():
        return
    content = result.to_json() if hasattr(result, "to_json") else result
    print(json.dumps(_without_nan(content), indent=1, allow_nan=False))


def _without_nan(value: Any) -> Any:
    """Return a copy of JSON data with None in place of nan and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
