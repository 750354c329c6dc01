"""Estimates round-trip time and bandwidth of the link to the store from the requests that went over it. Pure."""

from collections import deque

import numpy as np

MIN_WINDOW_BYTES = 256 << 10
MAX_WINDOW_BYTES = 8 << 20
"""Bytes that a miss may bring along over any link: with 2 MiB, starts over 100 ms need 1.5 to 2 times the round trips."""

_ASSUMED_BYTES_PER_S = 32e6
"""The rate until a request was long enough to measure one: a start has too few requests to begin with small ones."""
_SMALL_BYTES = 64 << 10
"""Bytes up to which a request measures the round-trip time; a larger one measures the rate."""
_RTT_S = 60.0
"""Seconds for which the least time counts: while the link is full, every time includes its queue."""
_RATES = 16
"""Rates of recent requests that are remembered."""
_LEAST_RATES = 2
"""Rates without which nothing is known to be spare."""
_TRANSFERS = 128
"""Recent transfers that may overlap a request, and share its rate."""
_MIN_TRANSFER_S = 0.2e-3


class Link:
    """Estimates as BBR does (Cardwell et al., ACM Queue 2016): by the least of recent times, and a high one of recent rates.

    A request's rate counts all bytes that came while it did, whoever asked for them, as 64 readers get a 64th each. Not safe
    to share: whoever owns it holds a lock.
    """

    def __init__(self) -> None:
        self._times: deque[tuple[float, float]] = deque()
        """When a request ended, and its seconds, ascending in both: one that a later and shorter one follows is dropped."""
        self._rates: deque[float] = deque(maxlen=_RATES)
        # The latest transfers, each of which is taken to have come evenly over [start, end) seconds.
        self._starts = np.zeros(_TRANSFERS)
        self._ends = np.zeros(_TRANSFERS)
        self._speeds = np.zeros(_TRANSFERS)
        self._noted = 0
        self.rtt_s = 0.0
        self.bytes_per_s = _ASSUMED_BYTES_PER_S

    @property
    def is_known(self) -> bool:
        """Returns True if enough requests have measured the rate: the first of many at once measure a part of it, since what
        has come of the others is not known until they end."""
        return len(self._rates) >= _RATES // 2

    @property
    def window_bytes(self) -> int:
        """Bytes that a miss may bring along: half of what the link holds, which adds half a round trip at most."""
        return _window_bytes(int(self.bytes_per_s * self.rtt_s))

    @property
    def spare_bytes(self) -> int:
        """Bytes that the link carries in a round trip beside those that a miss brings along; 0 until that is measured.

        The rate is the median of those measured: one that is too high by chance would fill a thin link.
        """
        if len(self._rates) < _LEAST_RATES:
            return 0
        held = int(sorted(self._rates)[len(self._rates) // 2] * self.rtt_s)
        return max(held - _window_bytes(held), 0)

    def note(self, start: float, end: float, count: int) -> None:
        """Notes a request that began at `start`, and whose `count` bytes had all come at `end` (seconds)."""
        if end <= start:
            return
        if count <= _SMALL_BYTES:
            self._note_time(end, end - start)
        took = max(end - start - self.rtt_s, _MIN_TRANSFER_S)
        at = self._noted % _TRANSFERS
        self._noted += 1
        self._starts[at], self._ends[at], self._speeds[at] = end - took, end, count / took
        if count <= _SMALL_BYTES:
            return
        shared = np.minimum(self._ends, end) - np.maximum(self._starts, end - took)
        self._rates.append(float(np.maximum(shared, 0.0) @ self._speeds) / took)
        ordered = sorted(self._rates)
        self.bytes_per_s = ordered[len(ordered) * 3 // 4]

    def _note_time(self, now: float, took: float) -> None:
        while self._times and self._times[-1][1] >= took:
            self._times.pop()
        self._times.append((now, took))
        while self._times[0][0] < now - _RTT_S:
            self._times.popleft()
        self.rtt_s = self._times[0][1]


def _window_bytes(held_bytes: int) -> int:
    """Returns the bytes that a miss may bring along over a link that holds so many."""
    return min(max(MIN_WINDOW_BYTES, held_bytes // 2), MAX_WINDOW_BYTES)
