"""Learns from recorded traces: runs `blockmap.learn.automatic` in processes of low priority, one at a time.

That process decides whether there is something to learn, waits so that not all hosts publish at once, and asks the store;
this one only ensures that it does not slow down reads, and does not outlive the server.
"""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from blockmap.format.refs import pinned_export
from blockmap.format.signature import PublicKey
from blockmap.format.trace import TraceHead

_log = logging.getLogger("blockmap")

_NICE = 10
"""The process's scheduling weight is a tenth of a reader's."""
_APART_S = 60.0
"""The least seconds between two starts of the process for one workload."""
_MOST_S = 900.0
"""The most seconds that the process may take: while the store is away it waits, and later traces teach the same."""
_END_S = 5.0
"""Seconds that the server, when it ends, waits for the thread that killed the process."""
_WAITING = 64
"""The most workloads that wait for their turn; further offers are dropped."""
_KILLED_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")


class LearnerProcess:
    """Runs the learning process for traces that are offered; safe to share between threads."""

    def __init__(
        self,
        store: str,
        cache: Path,
        program: tuple[str, ...] = (f"{sys.prefix}/bin/python", "-m", "blockmap.learn.automatic"),
        clock: Callable[[], float] = time.monotonic,
        trust: Sequence[PublicKey] = (),
    ) -> None:
        self._store = store
        self._trust = trust
        self._cache = cache
        self._program = program
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows
        self._waiting: dict[tuple[str, str], tuple[TraceHead, Path]] = {}
        self._started_at: dict[tuple[str, str], float] = {}
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._runs = self._failures = 0

    def offer(self, head: TraceHead, trace: Path) -> None:
        """Takes a trace that there may be something to learn from; never waits."""
        key, now = (head.repo, head.label), self._clock()
        with self._lock:
            self._started_at = {each: at for each, at in self._started_at.items() if now - at < _APART_S}
            if self._closed or key in self._started_at or len(self._waiting) >= _WAITING:
                return
            self._waiting[key] = head, trace
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="learn", daemon=True)
                self._thread.start()

    def status(self) -> dict[str, int]:
        """Returns how many run or wait, and counters."""
        with self._lock:
            running = len(self._waiting) + (self._thread is not None)
            return {"running": running, "runs": self._runs, "failures": self._failures}

    def close(self) -> None:
        """Ends what runs."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            thread = self._thread
            if self._process is not None:
                self._process.kill()
        if thread is not None:
            thread.join(_END_S)

    def _work(self) -> None:
        """Runs while there is something to do."""
        while True:
            with self._lock:
                key = next(iter(self._waiting), None)
                if key is None:
                    self._thread = None
                    return
                head, trace = self._waiting.pop(key)
                self._started_at[key] = self._clock()
            try:
                self._learn(head, trace)
            except Exception as error:
                with self._lock:
                    self._failures += 1
                _log.warning("learning from %s failed: %s", trace, error)

    def _learn(self, head: TraceHead, trace: Path) -> None:
        process = self._start(head, trace)
        if process is None:
            return
        with process:
            try:
                said, _ = process.communicate(timeout=_MOST_S)
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        with self._lock:
            self._process = None
            closed = self._closed
            self._failures += process.returncode != 0 and not closed
        if process.returncode and not closed:
            _log.warning("learning from a start of %s+%s failed: %s", head.repo, head.label, last)
        elif not closed:
            _log.info("%s+%s: %s", head.repo, head.label, last)

    def _start(self, head: TraceHead, trace: Path) -> "subprocess.Popen[str] | None":
        export = f"{pinned_export(head.repo, head.version)}+{head.label}"
        command = [*self._program, self._store, str(self._cache), export, str(trace), *map(str, self._trust)]
        with self._lock:
            if self._closed:
                return None
            self._runs += 1
            process = self._process = subprocess.Popen(
                guarded(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd="/",
            )
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        return process


def guarded(command: Sequence[str]) -> list[str]:
    """Returns a command whose process ends with this one, however that ends."""
    # The program itself asks the kernel for this: between fork and exec no Python code may run in a process of many threads.
    guard = _KILLED_WITH_PARENT if shutil.which(_KILLED_WITH_PARENT[0]) else ()
    return [*guard, *command]
