"""Many requests at once, each of which may fail by itself."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from blockmap.errors import BlockmapError

T = TypeVar("T")
R = TypeVar("R")

THREADS = 16


def gather(work: Callable[[T], R], items: Iterable[T]) -> list[R | BlockmapError]:
    """What `work` gives for each item, in order; the error in its place where it raises a BlockmapError."""

    def guarded(item: T) -> R | BlockmapError:
        try:
            return work(item)
        except BlockmapError as error:
            return error

    waiting = list(items)
    if len(waiting) < 2:
        return [guarded(item) for item in waiting]
    with ThreadPoolExecutor(min(THREADS, len(waiting)), "gather") as pool:
        return list(pool.map(guarded, waiting))
