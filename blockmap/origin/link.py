"""What the link to the store is like, from the requests that went over it: pure."""

from collections import deque

import numpy as np

MIN_WINDOW_BYTES = 256 << 10
MAX_WINDOW_BYTES = 8 << 20
"""Replayed starts of four images through 20 to 200 ms and 1 Gbit/s: with 2 MiB a start over 100 ms has 1.5 to 2 times the
round trips that it has with 8 MiB, and brings 0.7 of the bytes."""

_ASSUMED_BYTES_PER_S = 32e6
"""Until a request was long enough to tell: a start has too few requests to begin with small ones."""
_SMALL_BYTES = 64 << 10
"""Up to here a request tells of the round trip, above of the rate."""
_RTT_S = 60.0
"""How long the least time counts: while the link is full, every time has its queue in it."""
_RATES = 16
_TRANSFERS = 128
_MIN_TRANSFER_S = 0.2e-3


class Link:
    """Estimates round trip and bandwidth as BBR does (Cardwell et al., ACM Queue 2016): the least of recent times, and a
    high one of recent rates.

    A rate counts all bytes that came while a request did, whoever asked for them: with 64 readers each gets a 64th.
    Not safe to share: whoever owns it holds a lock.
    """

    def __init__(self) -> None:
        self._times: deque[tuple[float, float]] = deque()
        """When, and how long, ascending in both: what a later and lesser time has not made useless."""
        self._rates: deque[float] = deque(maxlen=_RATES)
        # The latest transfers: bytes that came evenly over [start, end) seconds, as far as anybody can tell.
        self._starts = np.zeros(_TRANSFERS)
        self._ends = np.zeros(_TRANSFERS)
        self._speeds = np.zeros(_TRANSFERS)
        self._noted = 0
        self.rtt_s = 0.0
        self.bytes_per_s = _ASSUMED_BYTES_PER_S

    @property
    def is_known(self) -> bool:
        """Whether the rate is known: the first of many that come at once tell of a part of it, since what has come of the
        others is not known until they end."""
        return len(self._rates) >= _RATES // 2

    @property
    def window_bytes(self) -> int:
        """What a miss may bring along: half of what the link holds, which adds half a round trip to it at most."""
        return min(max(MIN_WINDOW_BYTES, int(self.bytes_per_s * self.rtt_s / 2)), MAX_WINDOW_BYTES)

    def note(self, start: float, end: float, count: int) -> None:
        """A request that began at `start`, and whose `count` bytes had all come at `end` (seconds)."""
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
