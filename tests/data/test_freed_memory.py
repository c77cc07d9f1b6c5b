"""Memory that was freed is kept or returned to the system, as the library asks the C library."""

from __future__ import annotations

import platform
from types import SimpleNamespace
from typing import Any

import pytest

from groupdetr.data import freed_memory
from groupdetr.data.freed_memory import MALLOC_VARIABLES, keep_freed_memory
from tests.runs import environment, printed_number

MIB = 1 << 20
WITH_GLIBC = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other systems have other allocators"
)
# The environment of a user who has chosen nothing.
DEFAULT = {
    name: value
    for name, value in environment().items()
    if name not in ("LD_PRELOAD", "GLIBC_TUNABLES", *MALLOC_VARIABLES)
}


HEAP_PROGRAM = """
import ctypes
import psutil
from groupdetr.data.freed_memory import trim_malloc

def resident_mib():
    return psutil.Process().memory_info().rss >> 20

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
before = resident_mib()
large = []
for _ in range(300):
    large.append(libc.malloc(ctypes.c_size_t(1 << 20)))
    ctypes.memset(large[-1], 1, 1 << 20)
    libc.malloc(ctypes.c_size_t(1 << 10))  # remains, and keeps the heap from shrinking at its end
assert resident_mib() - before > 290
for address in large:
    libc.free(address)
trim_malloc()
print(resident_mib() - before)
"""


@WITH_GLIBC
def test_trim_malloc_returns_freed_memory_between_small_blocks_that_remain() -> None:
    """The program allocates from the C library itself, so PyTorch's allocator has no say in it."""
    one_heap = {
        **DEFAULT,
        "MALLOC_MMAP_THRESHOLD_": str(32 * MIB),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_ARENA_MAX": "1",
    }
    assert printed_number(HEAP_PROGRAM, env=one_heap) < 50


KEPT_PROGRAM = """
import psutil
import torch
from groupdetr.data.freed_memory import keep_freed_memory

keep_freed_memory()
before = psutil.Process().memory_info().rss
large = torch.ones(100 << 20, dtype=torch.uint8)
del large
print((psutil.Process().memory_info().rss - before) >> 20)
"""


@WITH_GLIBC
def test_freed_memory_is_kept_for_the_next_pass_unless_the_environment_says_otherwise() -> None:
    assert printed_number(KEPT_PROGRAM, env=DEFAULT) >= 100
    of_user = {"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.top_pad=65536"}
    for variables in of_user:
        assert printed_number(KEPT_PROGRAM, env=DEFAULT | variables) < 10


@pytest.mark.parametrize("highest", [1 << 30, 1 << 25, 1 << 17], ids=["new", "old", "none"])
def test_nothing_is_set_without_a_higher_threshold_of_large_blocks(
    highest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """glibc up to 2.30, at least, refuses thresholds above 32 MiB.

    The other settings alone would end its own adaptation of the threshold, so every block of more
    than 128 KiB would be returned to the system.
    """
    accepted: dict[int, int] = {}

    def mallopt(setting: int, value: int) -> int:
        if setting == freed_memory.M_MMAP_THRESHOLD and value > highest:
            return 0
        accepted[setting] = value
        return 1

    def function(name: str) -> Any:
        return {"mallopt": mallopt}[name]

    for name in (*MALLOC_VARIABLES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(freed_memory, "_c_function", function)
    assert keep_freed_memory() == bool(accepted) == (highest > 1 << 17)
    assert accepted.get(freed_memory.M_MMAP_THRESHOLD, 1 << 17) == highest


@pytest.mark.parametrize("library", [SimpleNamespace(), None], ids=["no mallopt", "no C library"])
def test_other_allocators_are_left_as_they_are(
    library: SimpleNamespace | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_library(_name: None) -> SimpleNamespace:
        if library is None:
            raise OSError
        return library

    for name in (*MALLOC_VARIABLES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", load_library)
    freed_memory._c_function.cache_clear()
    assert not keep_freed_memory()
    freed_memory._c_function.cache_clear()
