"""Makes many requests at once, each of which may fail by itself."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from blockmap.errors import BlockmapError
from blockmap.store.concurrent import each

T = TypeVar("T")
R = TypeVar("R")


def gather(work: Callable[[T], R], items: Iterable[T]) -> list[R | BlockmapError]:
    """Returns what `work` gives for each item, in order, 16 at once; where it raises a BlockmapError, the error."""

    def guarded(item: T) -> R | BlockmapError:
        try:
            return work(item)
        except BlockmapError as error:
            return error

    return each(guarded, items)
