"""The ranges that are read from the store, and what they tell of the link to it.

Demand comes first: what nobody waits for is not asked for while readers have more under way than the link holds.
"""

import threading
import time

from blockmap.errors import StoreUnavailable
from blockmap.format import keys
from blockmap.origin.link import Link
from blockmap.origin.outage import OutageGate
from blockmap.store.base import Reader

_WORTH_SPLITTING_S = 1e-3


class Ranges:
    """Reads from one store; safe to share between threads."""

    def __init__(self, store: Reader) -> None:
        self.line = OutageGate(self.ping)
        self._store = store
        # Guards what follows; never held across I/O, nor while another lock is taken.
        self._lock = threading.Lock()
        self._calm = threading.Condition(self._lock)
        self._link = Link()
        self._demand_bytes = 0  # under way for readers
        self._requests = self._bytes = 0

    @property
    def calm(self) -> bool:
        """Whether the link has room beside what readers wait for."""
        with self._lock:
            return self._has_headroom()

    def await_headroom(self) -> None:
        """Waits until the link has room; no longer where the store is away."""
        with self._lock:
            self._calm.wait_for(lambda: self.line.away or self._has_headroom())

    def allowance(self) -> tuple[int, bool] | None:
        """What a miss may take along, bytes, and whether that takes no time to speak of; None where there is no room."""
        with self._lock:
            window = self._link.window_bytes
            instant = window < _WORTH_SPLITTING_S * self._link.bytes_per_s
            return (window, instant) if self._has_headroom() else None

    def ping(self) -> None:
        """Asks the store for next to nothing; StoreUnavailable."""
        start = time.monotonic()
        self._store.get_range(keys.FORMAT, 0, 1)
        with self._lock:
            self._link.note(start, time.monotonic(), 1)
        self.line.answered()

    @property
    def bytes_per_s(self) -> float:
        with self._lock:
            return self._link.bytes_per_s

    @property
    def held_bytes(self) -> int | None:
        """What the link holds, as far as that is known."""
        with self._lock:
            return int(self._link.bytes_per_s * self._link.rtt_s) if self._link.is_known else None

    def read(self, key: str, start: int, end: int, demand: bool) -> memoryview:
        """The bytes [start, end) of an object; Corrupt, NotFound, StoreUnavailable."""
        if self.line.stopped:
            raise StoreUnavailable("the server is ending: read again when it is there")
        count = end - start
        began = time.monotonic()
        with self._lock:
            self._requests += 1
            self._demand_bytes += count * demand
        try:
            stored = self._store.get_range(key, start, end)
        finally:
            with self._lock:
                if demand:
                    self._demand_bytes -= count
                    self._calm.notify_all()
        with self._lock:
            self._bytes += count
            self._link.note(began, time.monotonic(), count)
        self.line.answered()
        return memoryview(stored)

    def status(self) -> dict[str, int]:
        with self._lock:
            found = {
                "requests": self._requests,
                "bytes": self._bytes,
                "rtt_us": int(self._link.rtt_s * 1e6),
                "bytes_per_s": int(self._link.bytes_per_s),
            }
        return found | self.line.status()

    def stop(self) -> None:
        """Ends all waiting, now and from now on."""
        self.line.stop()
        with self._lock:
            self._calm.notify_all()

    def _has_headroom(self) -> bool:
        """To be called with the lock."""
        return self._demand_bytes < self._link.window_bytes
