"""Counts the round trips that a start has waited for, and remembers where it missed."""

import threading
from collections import deque
from collections.abc import Callable

PAUSE_S = 5.0
"""Seconds without a miss after which misses have ended, and a run of others begins."""
_RECENT = 64
"""Places of misses that are remembered."""


class Misses:
    """The misses of one start; safe to share between threads."""

    def __init__(self) -> None:
        self.steps = 0
        """Misses of the present run that came one after the other: the longest chain of those that did not overlap. A start
        waits so many round trips."""
        self.noted: Callable[[], object] | None = None
        """Called after each miss, in the reader's thread; it must not wait for anything."""
        self._lock = threading.Lock()  # guards what follows, and `steps`; no other lock is taken while it is held
        self._until = float("-inf")
        self._recent: deque[int] = deque(maxlen=_RECENT)

    def note(self, began: float, ended: float, block: int) -> None:
        """Notes a read that waited for the store from `began` until just now, `ended` (seconds), and where it was."""
        with self._lock:
            if began > self._until + PAUSE_S:
                self.steps = 0
            # They come by their ends, so that counting each that begins after the last one counted finds the longest chain.
            if began >= self._until:
                self.steps += 1
                self._until = ended
            self._recent.append(block)
        if self.noted is not None:
            self.noted()

    @property
    def recent(self) -> list[int]:
        """Returns the blocks of the latest misses."""
        with self._lock:
            return list(self._recent)
