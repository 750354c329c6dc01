"""A store that counts steps: what is asked for while nothing has been answered since is one step over a network."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from blockmap.store.base import Buffer

_T = TypeVar("_T")

_DEADLINE_S = 20.0


class Steps:
    """Answers nothing of a step before all of it was asked for: the sizes of the steps are what a test expects.

    A question beyond is a step of its own. Writes pass at once and do not count.
    """

    local = False

    def __init__(self, inner: Any, *sizes: int) -> None:
        self.inner, self.url = inner, inner.url
        self.serial: list[list[str]] = []
        """What each step asked for, sorted."""
        self.bytes = 0
        """Bytes that were read, hints and records included."""
        self._sizes = list(sizes)
        self._changed = threading.Condition()
        self._asked: list[str] = []

    def expect(self, *sizes: int) -> None:
        """The sizes of the steps from now on."""
        self._sizes = list(sizes)

    def get(self, key: str, *most: int) -> bytes:
        return self._counted(self._step(f"get {key}", lambda: self.inner.get(key, *most)))

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return self._counted(self._step(f"range {key}", lambda: self.inner.get_range(key, start, end)))

    def list(self, prefix: str) -> list[str]:
        return self._step(f"list {prefix}", lambda: self.inner.list(prefix))

    def exists(self, key: str) -> bool:
        return self._step(f"exists {key}", lambda: self.inner.exists(key))

    def size(self, key: str) -> int:
        return self._step(f"size {key}", lambda: self.inner.size(key))

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self.inner.create(key, parts)

    def replace(self, key: str, data: bytes) -> None:
        self.inner.replace(key, data)

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def _counted(self, data: bytes) -> bytes:
        with self._changed:
            self.bytes += len(data)
        return data

    def _step(self, what: str, call: Callable[[], _T]) -> _T:
        with self._changed:
            mine = self._asked
            mine.append(what)
            if len(mine) == (self._sizes[0] if self._sizes else 1):
                self._sizes[:1] = []
                self.serial.append(sorted(mine))
                self._asked = []
                self._changed.notify_all()
            elif not self._changed.wait_for(lambda: self._asked is not mine, _DEADLINE_S):
                raise AssertionError(f"only {sorted(mine)} was asked for in step {len(self.serial) + 1}")
        return call()
