"""A function applied to many items by threads, with the results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def map_in_order(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], threads: int, ahead: int = 0
) -> Generator[ResultT, None, None]:
    """Yield ``function(item)`` for every item, in order.

    ``threads`` threads compute up to ``ahead`` results, or two for each thread if that is more,
    before they are asked for. With 0 threads, each is computed when it is asked for. The items are
    always taken by the caller's thread. An exception is raised in the place of its result; the
    results after it are dropped. An exception of the iterable ``items`` is raised after the results
    of the items that it had yielded before.

    Files are read, and images are decoded, resized and compressed, without Python's global lock, so
    threads do this while the caller's thread computes.
    """
    if threads == 0:
        yield from map(function, items)
        return
    pending: deque[Future[ResultT]] = deque()
    iterator = iter(items)
    failure: Exception | None = None
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                except Exception as error:
                    failure = error
                    break
                pending.append(pool.submit(function, item))
                if len(pending) > max(2 * threads, ahead):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
            if failure is not None:
                raise failure
        finally:
            for future in pending:
                future.cancel()
