"""Threads that compute results ahead, in the order of the items."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from groupdetr.engine.ordered_threads import map_in_order


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_have_the_order_of_the_items_which_the_caller_takes(threads: int) -> None:
    def items() -> Iterator[int]:
        for item in range(20):
            assert threading.current_thread() is caller
            yield item

    caller = threading.current_thread()
    assert list(map_in_order(lambda x: x * x, items(), threads)) == [x * x for x in range(20)]


def test_the_next_results_are_computed_while_the_caller_has_an_earlier_one() -> None:
    computed = [threading.Event() for _ in range(10)]

    def compute(index: int) -> int:
        computed[index].set()
        return index

    results = map_in_order(compute, range(10), threads=2, ahead=6)
    assert next(results) == 0
    # The results 1 to 6 are computed without being asked for, and no more.
    assert all(event.wait(timeout=600) for event in computed[:7])
    assert not any(event.is_set() for event in computed[7:])
    results.close()


@pytest.mark.parametrize("threads", [0, 2])
def test_an_exception_is_raised_in_the_place_of_its_result(threads: int) -> None:
    def compute(index: int) -> int:
        if index == 3:
            raise ValueError("three")
        return index

    results = map_in_order(compute, range(10), threads)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_exception_of_the_items_comes_after_the_results_of_those_before_it(threads: int) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("no more items")

    results = map_in_order(lambda x: x * x, items(), threads, ahead=20)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(ValueError, match="no more items"):
        next(results)
