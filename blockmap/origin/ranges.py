"""Reads ranges of objects from the store, and measures the link by them.

Demand comes first: nothing is read ahead while readers have more under way than the link holds.
"""

import threading
import time

from blockmap.errors import StoreUnavailable
from blockmap.format import keys
from blockmap.origin.link import Link
from blockmap.origin.outage import OutageGate
from blockmap.store.base import Reader

_WORTH_SPLITTING_S = 1e-3
"""Seconds of transfer from which on a miss and its neighbours are read in separate ranges."""


class Ranges:
    """Reads from one store; safe to share between threads."""

    def __init__(self, store: Reader, link: Link | None = None) -> None:
        """`link` is the estimate to begin with."""
        self.outage = OutageGate(self.ping)
        self.store = store
        # Guards what follows; never held across I/O, nor while another lock is taken.
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._link = Link() if link is None else link
        self._demand_bytes = 0  # bytes under way for which readers wait
        self._requests = self._bytes = 0

    @property
    def has_headroom(self) -> bool:
        """Returns True if the link has room beside what readers wait for."""
        with self._lock:
            return self._has_room()

    def await_headroom(self) -> None:
        """Waits until the link has headroom, or the store is away."""
        with self._lock:
            self._freed.wait_for(lambda: self.outage.away or self._has_room())

    def allowance(self) -> tuple[int, bool] | None:
        """Returns the bytes that a miss may bring along, and True if they take no time to speak of; None without headroom."""
        with self._lock:
            window = self._link.window_bytes
            instant = window < _WORTH_SPLITTING_S * self._link.bytes_per_s
            return (window, instant) if self._has_room() else None

    def ping(self) -> None:
        """Asks the store for one byte. Raises StoreUnavailable."""
        start = time.monotonic()
        self.store.get_range(keys.FORMAT, 0, 1)
        with self._lock:
            self._link.note(start, time.monotonic(), 1)
        self.outage.answered()

    @property
    def bytes_per_s(self) -> float:
        """Returns the link's rate, as far as it is known."""
        with self._lock:
            return self._link.bytes_per_s

    @property
    def spare_bytes(self) -> int:
        """Returns the bytes that the link carries in a round trip beside those that a miss brings along, 0 until measured."""
        with self._lock:
            return self._link.spare_bytes

    @property
    def held_bytes(self) -> int | None:
        """Returns the bytes that the link holds; None until its rate is known."""
        with self._lock:
            return int(self._link.bytes_per_s * self._link.rtt_s) if self._link.is_known else None

    def read(self, key: str, start: int, end: int, demand: bool) -> memoryview:
        """Returns the bytes [start, end) of an object; `demand` says that a reader waits for them.

        Raises Corrupt, NotFound, StoreUnavailable.
        """
        if self.outage.stopped:
            raise StoreUnavailable("the server is ending: read again when it is there")
        count = end - start
        began = time.monotonic()
        with self._lock:
            self._requests += 1
            self._demand_bytes += count * demand
        try:
            stored = self.store.get_range(key, start, end)
        finally:
            with self._lock:
                if demand:
                    self._demand_bytes -= count
                    self._freed.notify_all()
        with self._lock:
            self._bytes += count
            self._link.note(began, time.monotonic(), count)
        self.outage.answered()
        return memoryview(stored)

    def status(self) -> dict[str, int]:
        with self._lock:
            found = {
                "requests": self._requests,
                "bytes": self._bytes,
                "rtt_us": int(self._link.rtt_s * 1e6),
                "bytes_per_s": int(self._link.bytes_per_s),
            }
        return found | self.outage.status()

    def stop(self) -> None:
        """Ends all waiting; from now on every read fails."""
        self.outage.stop()
        with self._lock:
            self._freed.notify_all()

    def _has_room(self) -> bool:
        """Returns True if the link has headroom; called with the lock."""
        return self._demand_bytes < self._link.window_bytes
