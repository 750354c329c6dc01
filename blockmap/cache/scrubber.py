"""Looks after the cache: whether its directory is still there, and, slowly, whether what it holds is right.

So what decays on disk is found before a reader has to wait for it, and space that somebody removed is given back.
"""

import threading
from collections.abc import Callable

_EVERY_S = 2.0
"""Seconds between two looks."""
_PIECE_BYTES = 800 << 10
"""Bytes that are verified at each look: a full cache of 20 GB takes 14 hours, at 0.4 MB/s."""


class Scrubber:
    """Calls `look_after`, and `scrub` (`Cache.scrub`) with a number of bytes, every few seconds, in a thread of its own."""

    def __init__(
        self, look_after: Callable[[], object], scrub: Callable[[int], object], every_s: float = _EVERY_S
    ) -> None:
        self._look_after = look_after
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
            self._look_after()
            self._scrub(_PIECE_BYTES)
