"""Metrics that may be undefined: they are nan in memory and null in JSON, which has no nan."""

from __future__ import annotations

import math

from groupdetr.structures.json_object import JsonObject


def nan_to_none(row: JsonObject) -> JsonObject:
    """Return a copy with None in place of nan."""
    return {key: None if _is_nan(value) else value for key, value in row.items()}


def none_to_nan(row: JsonObject) -> JsonObject:
    """Return a copy with nan in place of None."""
    return {key: math.nan if value is None else value for key, value in row.items()}


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
