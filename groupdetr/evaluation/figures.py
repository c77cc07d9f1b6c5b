"""Figures that may be undefined, in files: JSON knows no nan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """With None instead."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def with_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse."""
    return {k: math.nan if v is None else v for k, v in row.items()}
