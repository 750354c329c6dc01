"""Measures every call of a store, and reports each to an observer."""

import time
from collections.abc import Callable
from typing import TypeVar

from blockmap.store import limits
from blockmap.store.base import Reader
from blockmap.store.call import Call

Result = TypeVar("Result")


class Observed:
    """Passes calls on to `inner`, and reports each to `note` when it has ended; as safe to share as both are."""

    def __init__(
        self, inner: Reader, note: Callable[[Call], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.url, self.local = inner.url, inner.local
        self._inner = inner
        self._note = note
        self._clock = clock

    def get(self, key: str, most: int = limits.RECORD) -> bytes:
        return self._timed("get", key, lambda: self._inner.get(key, most), len)

    def get_range(self, key: str, start: int, end: int) -> bytes | memoryview:
        return self._timed("get_range", key, lambda: self._inner.get_range(key, start, end), len)

    def list(self, prefix: str) -> list[str]:
        return self._timed("list", prefix, lambda: self._inner.list(prefix), lambda _: 0)

    def exists(self, key: str) -> bool:
        return self._timed("exists", key, lambda: self._inner.exists(key), lambda _: 0)

    def size(self, key: str) -> int:
        return self._timed("size", key, lambda: self._inner.size(key), lambda _: 0)

    def _timed(self, op: str, key: str, act: Callable[[], Result], size: Callable[[Result], int]) -> Result:
        start, count, kind = self._clock(), 0, None
        try:
            result = act()
            count = size(result)
            return result
        except BaseException as error:
            kind = type(error).__name__
            raise
        finally:
            self._note(Call(op, key, start, self._clock() - start, count, kind))
