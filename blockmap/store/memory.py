"""Stores objects in memory, for tests."""

import threading
import time
from collections.abc import Callable, Sequence

from blockmap.errors import AlreadyExists, Corrupt, NotFound
from blockmap.format import keys
from blockmap.store import limits
from blockmap.store.base import Buffer, Listed, too_long


class MemoryStore:
    """Objects in a dict; as strict as a real engine. `clock` gives seconds since 1970."""

    local = True

    def __init__(self, url: str = "memory:", clock: Callable[[], float] = time.time) -> None:
        self.url = url
        self._clock = clock
        self._lock = threading.Lock()  # guards _objects and _modified
        self._objects: dict[str, bytes] = {}
        self._modified: dict[str, float] = {}

    def get(self, key: str, most: int = limits.RECORD) -> bytes:
        data = self._get(key)
        if len(data) > most:
            raise too_long(self.url, key, len(data), most)
        return data

    def get_range(self, key: str, start: int, end: int) -> bytes:
        data = self._get(key)[start:end]
        if len(data) != end - start:
            raise Corrupt(f"{self.url}{key} ends at byte {start + len(data)}, before byte {end}")
        return data

    def list(self, prefix: str) -> list[str]:
        with self._lock:
            return sorted(key for key in self._objects if key.startswith(prefix))

    def exists(self, key: str) -> bool:
        keys.check(key)
        with self._lock:
            return key in self._objects

    def size(self, key: str) -> int:
        return len(self._get(key))

    def listing(self, prefix: str) -> dict[str, Listed]:
        with self._lock:
            return {
                key: Listed(len(data), self._modified[key])
                for key, data in sorted(self._objects.items())
                if key.startswith(prefix)
            }

    def modified(self, key: str) -> float:
        self._get(key)
        return self._modified[key]

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        keys.check(key)
        data = b"".join(parts)
        with self._lock:
            if key in self._objects:
                raise AlreadyExists(f"{self.url}{key} exists already")
            self._objects[key] = data
            self._modified[key] = self._clock()

    def replace(self, key: str, data: bytes) -> None:
        keys.check(key)
        with self._lock:
            self._objects[key] = bytes(data)
            self._modified[key] = self._clock()

    def delete(self, key: str) -> None:
        keys.check(key)
        with self._lock:
            self._objects.pop(key, None)

    def _get(self, key: str) -> bytes:
        keys.check(key)
        with self._lock:
            try:
                return self._objects[key]
            except KeyError:
                raise NotFound(f"there is no {key} in {self.url}") from None
