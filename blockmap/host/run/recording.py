"""Watches a start that is recorded: its trace ends when the program is ready, which then is stopped."""

import os
import signal
import threading
import time
from collections.abc import Callable

from blockmap.control.client import Client
from blockmap.control.messages import Ready
from blockmap.errors import BlockmapError
from blockmap.host.run.readiness import Readiness

_POLL_SECONDS = 0.02


class Recording:
    """An observer of one run, which ends it by a signal to this process, as a person would."""

    def __init__(self, client: Client, readiness: Readiness, limit_seconds: float, say: Callable[[str], None]) -> None:
        self.trace: str | None = None
        """The file of the trace, once it has ended."""
        self.ready_seconds: float | None = None
        """When the program was ready, from its start; None where it never was, so that there is nothing to learn."""
        self._client = client
        self._readiness = readiness
        self._limit_seconds = limit_seconds
        self._say = say
        self._export = ""
        self._began = 0.0
        self.stopped = False
        """True once the watcher has ended the trace, and is ending the program."""
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="recording", daemon=True)

    def starts(self, export: str) -> None:
        self._export, self._began = export, time.monotonic()
        self._watcher.start()

    def ended(self, code: int | None) -> None:
        self._over.set()
        self._watcher.join()
        if not self.stopped:
            seconds = time.monotonic() - self._began
            # It may have become ready, and ended, since the watcher looked.
            if code == 0 and (self._readiness.at_exit or self._readiness.holds()):
                self.ready_seconds = seconds
            self._end_trace()

    def _watch(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            seconds = time.monotonic() - self._began
            if self._readiness.holds():
                self.ready_seconds = seconds
            elif seconds < self._limit_seconds:
                continue
            self.stopped = True
            self._end_trace()
            os.kill(os.getpid(), signal.SIGTERM)
            return

    def _end_trace(self) -> None:
        try:
            self.trace = self._client.ask(Ready(self._export, failed=self.ready_seconds is None)).trace
        except BlockmapError as error:
            self._say(f"the trace could not be ended: {error}")
