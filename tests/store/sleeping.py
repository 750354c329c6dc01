"""A store through which a process sees the others go on while it is stopped, as by SIGSTOP or with its virtual machine."""

import threading
from collections.abc import Callable, Sequence

from blockmap.store.base import Buffer, Listed, Pruner


class SleepingStore:
    """Passes calls on to `inner`; before the call of number `step`, counted from 1, and with it all threads that use this, waits
    while `meanwhile` runs. A create and a delete count twice: what is late may be the call, or its answer."""

    def __init__(self, inner: Pruner, step: int, meanwhile: Callable[[], object]) -> None:
        self.inner, self.url, self.local = inner, inner.url, inner.local
        self.slept = False
        self._step = step
        self._meanwhile = meanwhile
        self._changed = threading.Condition()
        self._calls = 0
        self._is_asleep = False

    def get(self, key: str, *most: int) -> bytes:
        self._count()
        return self.inner.get(key, *most)

    def get_range(self, key: str, start: int, end: int) -> bytes | memoryview:
        self._count()
        return self.inner.get_range(key, start, end)

    def list(self, prefix: str) -> list[str]:
        self._count()
        return self.inner.list(prefix)

    def listing(self, prefix: str) -> dict[str, Listed]:
        self._count()
        return self.inner.listing(prefix)

    def exists(self, key: str) -> bool:
        self._count()
        return self.inner.exists(key)

    def size(self, key: str) -> int:
        self._count()
        return self.inner.size(key)

    def modified(self, key: str) -> float:
        self._count()
        return self.inner.modified(key)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self._count()
        self.inner.create(key, parts)
        self._count()

    def replace(self, key: str, data: bytes) -> None:
        self._count()
        self.inner.replace(key, data)

    def delete(self, key: str) -> None:
        self._count()
        self.inner.delete(key)
        self._count()

    def _count(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_asleep)
            self._calls += 1
            if self._calls != self._step:
                return
            self._is_asleep = self.slept = True
        try:
            self._meanwhile()
        finally:
            with self._changed:
                self._is_asleep = False
                self._changed.notify_all()
