"""Verifies the whole cache slowly, so that what decays on disk is found before a reader has to wait for it."""

import threading
from collections.abc import Callable

_EVERY_S = 10.0
"""Seconds between two pieces."""
_PIECE_BYTES = 4 << 20
"""Bytes that are verified at once: a full cache of 20 GB takes 14 hours, at 0.4 MB/s."""


class Scrubber:
    """Calls `scrub` (`Cache.scrub`) with a number of bytes every few seconds, in a thread of its own."""

    def __init__(self, scrub: Callable[[int], object], every_s: float = _EVERY_S) -> None:
        self._scrub = scrub
        self._every_s = every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scrubber", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            self._scrub(_PIECE_BYTES)
