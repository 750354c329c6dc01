"""Logs the calls of the store: counts them, remembers the latest, and derives how many were made one after the other."""

import threading
from collections import deque
from collections.abc import Iterable
from itertools import islice

from blockmap.store.call import Call
from blockmap.volume.histogram import Histogram

CALLS_KEPT = 16_384
"""Some 5 MB; a start makes hundreds."""

_OUTCOMES = {None: "ok", "NotFound": "absent", "Corrupt": "short", "StoreUnavailable": "unavailable"}
_ANSWERED = ("ok", "absent")


class _Op:
    """Sums up the calls of one kind."""

    __slots__ = ("bytes", "latency", "outcomes")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.bytes = 0
        self.latency = Histogram()


class CallLog:
    """Counts calls, and keeps the latest; safe to share between threads."""

    def __init__(self, kept: int = CALLS_KEPT) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._ops: dict[str, _Op] = {}
        self._latest: deque[Call] = deque(maxlen=kept)
        self._noted = 0

    def note(self, call: Call) -> None:
        with self._lock:
            self._noted += 1
            self._latest.append(call)
            op = self._ops.get(call.op)
            if op is None:
                op = self._ops[call.op] = _Op()
            outcome = _OUTCOMES.get(call.error, "failed")
            op.outcomes[outcome] = op.outcomes.get(outcome, 0) + 1
            op.bytes += call.bytes
            op.latency.add(call.seconds)

    def since(self, number: int, at_most: int) -> tuple[int, list[Call]]:
        """Returns the number of the first call, and calls from number `number` on (the first ever is 0), in the order in
        which they ended; the first is higher than asked for where calls are forgotten."""
        with self._lock:
            oldest = self._noted - len(self._latest)
            first = min(max(number, oldest), self._noted)
            return first, list(islice(self._latest, first - oldest, first - oldest + at_most))

    def status(self) -> dict[str, object]:
        """Returns the sums, and by method: calls by outcome, bytes, latency. An object that is absent is an answer, no error."""
        with self._lock:
            return {
                "requests": self._noted,
                "bytes": sum(op.bytes for op in self._ops.values()),
                "errors": sum(
                    n for op in self._ops.values() for outcome, n in op.outcomes.items() if outcome not in _ANSWERED
                ),
                "ops": {
                    name: {"outcomes": dict(op.outcomes), "bytes": op.bytes, "latency": op.latency.status()}
                    for name, op in self._ops.items()
                },
            }


def serial_steps(calls: Iterable[Call]) -> int:
    """Returns how many calls were made one after the other: the longest chain in which each starts when the one before it has
    ended, or later.

    Calls that overlap are one step. Intervals by their ends, each taken that starts after the last taken one, give the
    longest chain (interval scheduling). It is an upper bound of the round trips that had to wait for each other: a call
    may come later than another for other reasons. O(n log n).
    """
    steps, free_at = 0, float("-inf")
    for call in sorted(calls, key=lambda call: (call.start_s + call.seconds, call.start_s)):
        if call.start_s >= free_at:
            steps, free_at = steps + 1, call.start_s + call.seconds
    return steps
