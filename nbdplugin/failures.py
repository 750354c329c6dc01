"""Says why requests fail, without drowning the log when a store is away and every read fails."""

import logging
import threading
from collections.abc import Callable

_LINES = 5
_WINDOW_SECONDS = 10.0


class Failures:
    """Logs the first few failures of each kind in a window of time, and counts the others; safe to share."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()  # guards _windows; not held while a line is written
        self._windows: dict[str, tuple[float, int]] = {}
        """By kind: when its window began (seconds), and how many failures it has had since."""

    def note(self, kind: str, text: str) -> None:
        """Notes one failure; those of one `kind` count as the same."""
        now = self._clock()
        left_out = 0
        with self._lock:
            began, count = self._windows.get(kind, (now, 0))
            if now - began >= _WINDOW_SECONDS:
                left_out = max(count - _LINES, 0)
                began, count = now, 0
            self._windows[kind] = began, count + 1
        if left_out:
            self._log.error("%d more failures of kind %s were left out of this log", left_out, kind)
        if count < _LINES:
            self._log.error("%s", text)
