"""Starts of exports, and the trace that each leaves.

A start is that of one version under one label, with all connections that come while it lasts. It begins with its first
connection; its trace is made at the first read, so that who only looks at exports leaves none. It ends as `End` says; from
then on reads go to the view as if nothing had been.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from blockmap.errors import FormatError
from blockmap.format.trace import EXACT, NEW, End, Reads, TraceHead
from blockmap.trace.ended import EndedTraces, described
from blockmap.trace.evidence import looks_like_mount
from blockmap.trace.recorder import Recorder, make_room
from blockmap.trace.start_trace import Connection, Key, Limits, StartTrace

_log = logging.getLogger(__name__)


class TraceManager:
    """The starts of one server; safe to share between threads.

    `evidence` is called with each trace that says what a start needs, and is not to wait for anything.
    """

    def __init__(
        self,
        folder: Path,
        evidence: Callable[[TraceHead, Path], None],
        limits: Limits | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._folder = folder
        self._evidence = evidence
        self._limits = limits or Limits()
        self._clock_ns = clock_ns
        self._ended_traces = EndedTraces()
        self._wake = threading.Event()
        # Guards what follows, and starts. Held while a trace is made, which is a few calls of the local disk.
        self._lock = threading.Lock()
        self._running: dict[Key, StartTrace] = {}
        self._of: dict[Connection, StartTrace] = {}
        self._expected: dict[Key, tuple[int, int]] = {}
        """Flags of the next start, and until when they count."""
        self._thread: threading.Thread | None = None
        self._closed = self._crowded = self._complained = False
        self._begun = self._ended = self._evident = self._failed = 0

    def join(self, connection: Connection, label: str) -> None:
        """A connection was opened: its reads belong to the start that runs, or begin one."""
        key = connection.view.name, label
        with self._lock:
            start = self._running.get(key)
            if start is None:
                start = self._running[key] = StartTrace(key, connection.view, self._clock_ns())
            start.connections.add(connection)
            self._of[connection] = start
            start.bind(connection, self._begin)

    def leave(self, connection: Connection) -> None:
        """A connection was closed; to be called before its view is."""
        with self._lock:
            start = self._of.pop(connection, None)
            if start is None:
                return
            start.connections.discard(connection)
            last = not start.connections
        if last:
            self._end(start, End.CLOSED)

    def expect(self, export: str, label: str, exact: bool) -> None:
        """The next start of an export (by digest) is one of a device that is new to the host."""
        now = self._clock_ns()
        with self._lock:
            self._expected = {key: each for key, each in self._expected.items() if each[1] > now}
            self._expected[export, label] = NEW | (EXACT if exact else 0), now + _ns(self._limits.expect_s)

    def ready(self, export: str, label: str) -> Path | None:
        """The program of an export (by digest) is ready: ends its trace, which is returned, or says so in one that has
        ended already; None where there is neither."""
        key, now = (export, label), self._clock_ns()
        with self._lock:
            start = self._running.get(key)
            recorder = start.recorder if start is not None else None
        if start is None or recorder is None:
            return self._ended_traces.ready(key, now)
        self._end(start, End.READY, (now - start.began_ns) // 1_000_000)
        return recorder.path

    def look(self) -> None:
        """Ends the starts that are over."""
        for start, recorder in self._recorded():
            why = start.look(recorder, self._clock_ns(), self._limits)
            if why is not None:
                self._end(start, why)

    def status(self) -> dict[str, int]:
        """Counters."""
        with self._lock:
            running = sum(start.recorder is not None for start in self._running.values())
            return {
                "running": running, "begun": self._begun, "ended": self._ended, "evidence": self._evident,
                "failed": self._failed,
            }  # fmt: skip

    def traces(self) -> list[dict[str, object]]:
        """The traces that run, and those that ended last, the newest first."""
        with self._lock:
            running = [
                {**described(start.key, start.recorder.path, start.head, start.seen), "state": "running"}
                for start in self._running.values()
                if start.recorder is not None and start.head is not None
            ]
        return [*reversed(running), *self._ended_traces.told()]

    def close(self) -> None:
        """Cuts the traces that run to what they hold; nothing is recorded any more."""
        with self._lock:
            self._closed = True
            running, thread = list(self._running.values()), self._thread
        for start in running:
            self._end(start, End.OPEN)
        self._wake.set()
        if thread is not None:
            thread.join()

    def _begin(self, start: StartTrace) -> None:
        """Makes the trace, at the first read."""
        with self._lock:
            if start.over or start.recorder is not None:
                return
            now, limits = self._clock_ns(), self._limits
            if now - start.began_ns > _ns(limits.long_s):
                start.began_ns = now  # the device was made long before somebody used it
            start.touched_s = (now - start.began_ns) / 1e9
            flags, until = self._expected.pop(start.key, (0, now))
            start.flags = flags if now < until else 0
            try:
                start.head = start.begin_head((time.time_ns() - (now - start.began_ns)) // 1000)
                start.recorder = Recorder(self._folder, start.head, start.began_ns, limits.records, self._clock_ns)
            except (OSError, FormatError) as error:
                self._failed += 1
                self._drop(start)
                if not self._complained:
                    self._complained = True
                    _log.warning("starts are not recorded, reads go on: no trace in %s: %s", self._folder, error)
                return
            self._complained, self._crowded = False, True
            self._begun += 1
            for connection in start.connections:
                start.bind(connection, self._begin)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._watch, name="traces", daemon=True)
                self._thread.start()

    def _end(self, start: StartTrace, why: End, ready_ms: int = 0) -> None:
        """Ends a start, once; decides what its trace is."""
        with self._lock:
            if start.over:
                return
            self._drop(start)
            recorder, begun = start.recorder, start.head
            if recorder is None or begun is None:
                return
            self._ended += 1
        apart_ns = _ns(self._limits.apart_s)
        alone = self._ended_traces.note_end(start.key[0], start.began_ns, self._clock_ns(), apart_ns)
        count = 0

        def finish(reads: Reads) -> TraceHead:
            nonlocal count
            count, flags = len(reads), start.flags
            if why == End.OPEN:
                flags &= ~NEW  # what it lacks might have been read yet
            elif alone and looks_like_mount(reads):
                flags |= NEW
            return replace(begun, flags=flags, end=why, ready_ms=ready_ms, profile=start.view.profile)

        try:
            head = recorder.end(finish)
        except OSError as error:
            _log.warning("the trace %s ends as it is: %s", recorder.path, error)
            with self._lock:
                self._failed += 1
            return
        self._ended_traces.add(start.key, recorder.path, head, count, start.began_ns)
        if head.is_evidence:
            with self._lock:
                self._evident += 1
            self._evidence(head, recorder.path)

    def _drop(self, start: StartTrace) -> None:
        """A start is over for its connections; with the lock."""
        start.over = True
        if self._running.get(start.key) is start:
            del self._running[start.key]
        for connection in start.connections:
            self._of.pop(connection, None)
            start.bind(connection, self._begin)
        start.connections = set()

    def _recorded(self) -> list[tuple[StartTrace, Recorder]]:
        """The starts that have a trace now."""
        with self._lock:
            return [(start, start.recorder) for start in self._running.values() if start.recorder is not None]

    def _watch(self) -> None:
        """Drains and looks while a trace runs."""
        limits = self._limits
        while True:
            self._delete_old()
            until = time.monotonic() + limits.look_s
            while time.monotonic() < until and not self._wake.wait(min(limits.drain_s, limits.look_s)):
                for _, recorder in self._recorded():
                    recorder.drain()
            try:
                self.look()
            except Exception:
                _log.exception("a look at the traces that run failed")
            with self._lock:
                if self._closed or not any(start.recorder for start in self._running.values()):
                    self._thread = None
                    return

    def _delete_old(self) -> None:
        with self._lock:
            crowded, self._crowded = self._crowded, False
        if crowded:
            try:
                make_room(self._folder, self._limits.files, self._limits.bytes)
            except OSError as error:
                _log.warning("old traces are not deleted: %s", error)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
