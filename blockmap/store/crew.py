"""Threads for what may take long: neither their caller nor a process that ends waits for ever until it is done."""

import logging
import queue
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

_Act = Callable[[], object]


class Crew:
    """Runs acts in as many threads as are needed at once, up to a limit; safe to share between threads."""

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._acts: queue.SimpleQueue[_Act | None] = queue.SimpleQueue()
        self._changed = threading.Condition()  # guards what follows
        self._threads = 0
        self._idle = 0  # threads without an act, less the acts that wait for a thread
        self._closed = False

    def run(self, act: _Act) -> None:
        """Has an act run, at once or when a thread is free; once closed, it does nothing. Never raises."""
        with self._changed:
            if self._closed:
                return
            more = self._idle <= 0 and self._threads < self._most
            self._threads += more
            self._idle -= not more
        self._acts.put(act)
        if more:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def close(self, seconds: float) -> None:
        """Waits until all acts are done, no longer than `seconds`; no more are taken."""
        end = time.monotonic() + seconds
        with self._changed:
            self._closed = True
            for _ in range(self._threads):
                self._acts.put(None)
            if not self._changed.wait_for(lambda: not self._threads, end - time.monotonic()):
                _log.info("%d threads of the kind %r are left to end by themselves", self._threads, self._name)

    def _work(self) -> None:
        while (act := self._acts.get()) is not None:
            try:
                act()
            except Exception:
                _log.exception("a task in the background failed")
            with self._changed:
                self._idle += 1
        with self._changed:
            self._threads -= 1
            self._changed.notify_all()
