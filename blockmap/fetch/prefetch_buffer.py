"""Holds prefetched chunks as they came from the store, until somebody reads them or there is time to decode them.

A chunk costs nothing while it is held: to verify, decompress and cache 100 MB takes the processors 2 s, which a start has
better uses for. Nothing in here is verified.
"""

import threading
from collections.abc import Collection

from blockmap.store.plan import Wanted


class PrefetchBuffer:
    """Chunks by their keys; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows; readers of `held` and `expected` look without it
        self.held: dict[bytes, tuple[Wanted, bytes]] = {}
        """Chunks that have come, as stored, the oldest first."""
        self.expected: set[bytes] = set()
        """Keys of the chunks that are under way."""
        self.size = 0
        """Bytes of all that is held."""

    def expect(self, items: Collection[Wanted]) -> None:
        """Notes that chunks are under way."""
        with self._lock:
            self.expected.update(item.key for item in items)

    def put(self, items: Collection[Wanted], stored: memoryview | None) -> None:
        """Takes the bytes of a range that was under way, which begins where the first of `items` does; None where it does not
        come."""
        # Copies, as one chunk that is left would keep its whole range in memory.
        start = next(iter(items)).place.offset
        came = (
            []
            if stored is None
            else [(item, bytes(stored[item.place.offset - start : item.end - start])) for item in items]
        )
        with self._lock:
            self.expected.difference_update(item.key for item in items)
            for item, data in came:
                if item.key not in self.held:
                    self.held[item.key] = item, data
                    self.size += len(data)

    def take(self, key: bytes) -> bytes | None:
        """Removes a chunk, and returns it as stored; None if it is not held."""
        with self._lock:
            found = self.held.pop(key, None)
            if found is None:
                return None
            self.size -= len(found[1])
            return found[1]

    def take_oldest(self) -> tuple[Wanted, bytes] | None:
        """Removes the chunk that is held for longest, and returns it as stored; None if there is none."""
        with self._lock:
            key = next(iter(self.held), None)
            if key is None:
                return None
            found = self.held.pop(key)
            self.size -= len(found[1])
            return found
