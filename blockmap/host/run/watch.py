"""Watches a container until it is ready, from within its network."""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from blockmap.control.client import Client
from blockmap.control.messages import Ready
from blockmap.errors import BlockmapError
from blockmap.host.run.readiness import Readiness

_CLONE_NEWNET = 0x40000000
_POLL_SECONDS = 0.02


class ReadinessWatch:
    """An observer of one run: says when the program is ready, or that it was not in time, and goes on with neither.

    The server is told as well: what a start reads is what it reads until then.
    """

    def __init__(
        self, client: Client, readiness: Readiness, log: Path, limit_seconds: float, tell: Callable[[bool], None]
    ) -> None:
        """`tell` gets True as soon as the program is ready, False after `limit_seconds`, from a thread; `log` has its output."""
        self._client = client
        self._readiness = readiness
        self._log = log
        self._limit_seconds = limit_seconds
        self._tell = tell
        self._export = ""
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def starts(self, export: str) -> None:
        self._export = export

    def begin(self, pid: int) -> None:
        """Begins to ask, in the network of a process of the container."""
        self._thread = threading.Thread(target=self._watch, args=(pid,), name="readiness", daemon=True)
        self._thread.start()

    def ended(self, code: int | None) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if code == 0 and self._readiness.at_exit:
            self._is_ready()

    def _watch(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # it may have ended
            _enter_network(pid)
        deadline = time.monotonic() + self._limit_seconds
        with open(self._log, "rb", buffering=0) as said:
            while not self._over.wait(_POLL_SECONDS):
                self._readiness.hear(said.read())
                if self._readiness.holds():
                    self._is_ready()
                    return
                if time.monotonic() > deadline:
                    self._tell(False)
                    return

    def _is_ready(self) -> None:
        with contextlib.suppress(BlockmapError):
            self._client.ask(Ready(self._export))
        self._tell(True)


def _enter_network(pid: int) -> None:
    """Moves this thread into the network namespace of a process; OSError."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)
