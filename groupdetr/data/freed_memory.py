"""What the C library does with memory that was freed: it keeps it, or returns it to the system."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

# Variables of the environment by which users choose these settings of glibc themselves.
MALLOC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
# The settings of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
# Bytes; a block below is not returned when it is freed. Older versions of glibc, such as 2.30,
# refuse more than 32 MiB.
MMAP_THRESHOLDS = (1 << 30, 1 << 25)
KEEP_FREED_MEMORY = {
    M_TRIM_THRESHOLD: 2**31 - 1,  # bytes; the end of the heap is returned above, the largest int
    M_TOP_PAD: 1 << 26,  # bytes; the heap grows by as much at least
}


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory for the next image or step, in this process.

    By default, glibc returns large blocks to the system as soon as they are freed. Every forward
    pass on a CPU then gets new pages for them, which the system must fill with zeros. Return True
    if glibc accepted the settings. With another C library nothing changes, and neither does it if a
    variable of the environment sets one of them.
    """
    if any(name in os.environ for name in MALLOC_VARIABLES):
        return False
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = _c_function("mallopt")
    if mallopt is None:
        return False
    # With any setting, glibc no longer adapts the threshold of 128 KiB to what is freed.
    # So without a higher threshold, the other settings would make every pass slower.
    if not any(mallopt(M_MMAP_THRESHOLD, threshold) for threshold in MMAP_THRESHOLDS):
        return False
    accepted = [mallopt(setting, value) for setting, value in KEEP_FREED_MEMORY.items()]
    return all(accepted)


def trim_malloc() -> None:
    """Return freed memory to the system; glibc would keep it. It takes a millisecond.

    The small results of an image lie between large blocks that were freed. Without trimming, an
    evaluation of masks grows by megabytes an image. Of COCO's train annotations with masks, half of
    the memory that reading takes would remain although it is free.
    """
    trim = _c_function("malloc_trim")
    if trim is not None:
        trim(0)


@cache
def _c_function(name: str) -> Callable[..., Any] | None:
    """Return a function of the C library, or None if it has no such function."""
    try:
        function: Callable[..., Any] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return function
