"""Records a trace of each start of an export.

A start that is traced has one version and one label, and all connections that come while it lasts. It begins with the first
of them; its trace is made at the first read, so that a client that only lists exports leaves none. It ends for one of the
reasons in `End`; from then on reads go straight to the volume.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from blockmap.errors import FormatError
from blockmap.format.trace import DECLARED, EXACT, NEW, End, Reads, TraceHead
from blockmap.trace.ended import EndedTraces, describe
from blockmap.trace.evidence import looks_like_mount
from blockmap.trace.recorder import Recorder, make_room
from blockmap.trace.start_trace import Connection, Limits, StartTrace
from blockmap.volume.start import Key

_log = logging.getLogger(__name__)


class TraceManager:
    """Traces the starts of one server; safe to share between threads.

    `evidence` is called with each trace that is evidence of a start's needs, and must not wait for anything.
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
        # Guards what follows, and each StartTrace. Held while a trace is made, which is a few calls of the local disk.
        self._lock = threading.Lock()
        self._running: dict[Key, StartTrace] = {}
        self._of: dict[Connection, StartTrace] = {}
        self._expected: dict[Key, tuple[int, int]] = {}
        """Flags of the next start, and until when they count."""
        self._thread: threading.Thread | None = None
        self._closed = self._crowded = self._complained = False
        self._begun = self._ended = self._evident = self._failed = 0

    def join(self, connection: Connection) -> None:
        """Adds a connection that was opened to the start that is traced, or begins one."""
        key = connection.start.key
        with self._lock:
            trace = self._running.get(key)
            if trace is None:
                trace = self._running[key] = StartTrace(connection.start, connection.volume, self._clock_ns())
            trace.add(connection)
            self._of[connection] = trace
            trace.bind(connection, self._begin)

    def leave(self, connection: Connection) -> None:
        """Takes a connection out; it must be called before the connection is closed."""
        with self._lock:
            trace = self._of.pop(connection, None)
            if trace is None:
                return
            trace.connections.discard(connection)
            last = not trace.connections
        if last:
            self._end(trace, End.CLOSED)

    def expect(self, export: str, label: str, *, exact: bool, start: bool) -> None:
        """Says that the next trace of an export (by digest) is one of a device that is new to the host, and whether a program
        starts from it."""
        now = self._clock_ns()
        flags = NEW | (EXACT if exact else 0) | (DECLARED if start else 0)
        with self._lock:
            self._expected = {key: each for key, each in self._expected.items() if each[1] > now}
            self._expected[export, label] = flags, now + _ns(self._limits.expect_s)

    def ready(self, export: str, label: str, *, failed: bool = False) -> Path | None:
        """Says that the program of an export (by digest) is ready, or has failed. Ends and returns its trace, or notes it in
        one that has ended already; returns None if there is neither."""
        key, now = (export, label), self._clock_ns()
        with self._lock:
            trace = self._running.get(key)
            recorder = trace.recorder if trace is not None else None
        if trace is None or recorder is None:
            return self._ended_traces.ready(key, now, failed)
        if failed:
            self._end(trace, End.FAILED)
        else:
            self._end(trace, End.READY, (now - trace.began_ns) // 1_000_000)
        return recorder.path

    def follows_profile(self, export: str, label: str) -> bool:
        """Returns True while a start of an export (by digest) is traced, and has missed hardly anything in what was replayed."""
        with self._lock:
            trace = self._running.get((export, label))
        return trace is not None and trace.start.skips_readahead()

    def look(self) -> None:
        """Ends the starts that are over."""
        for trace, recorder in self._recorded():
            why = trace.look(recorder, self._clock_ns(), self._limits)
            if why is not None:
                self._end(trace, why)

    def status(self) -> dict[str, int]:
        """Returns counters."""
        with self._lock:
            running = sum(trace.recorder is not None for trace in self._running.values())
            return {
                "running": running, "begun": self._begun, "ended": self._ended, "learnable": self._evident,
                "failed": self._failed,
            }  # fmt: skip

    def traces(self) -> list[dict[str, object]]:
        """Returns the traces that run, and those that ended last, the newest first."""
        with self._lock:
            running = [
                {**describe(trace.key, trace.recorder.path, trace.head, trace.seen), "state": "running"}
                for trace in self._running.values()
                if trace.recorder is not None and trace.head is not None
            ]
        return [*reversed(running), *self._ended_traces.described()]

    def close(self) -> None:
        """Ends the traces that run with what they hold; nothing is recorded any more."""
        with self._lock:
            self._closed = True
            running, thread = list(self._running.values()), self._thread
        for trace in running:
            self._end(trace, End.OPEN)
        self._wake.set()
        if thread is not None:
            thread.join()

    def _begin(self, trace: StartTrace) -> None:
        """Makes the file of a trace, at the first read."""
        with self._lock:
            if trace.over or trace.recorder is not None:
                return
            now, limits = self._clock_ns(), self._limits
            if now - trace.began_ns > _ns(limits.long_s):
                trace.began_ns = now  # the device was made long before somebody used it
            trace.touched_s = (now - trace.began_ns) / 1e9
            flags, until = self._expected.pop(trace.key, (0, now))
            trace.is_expected = now < until
            trace.flags = flags if trace.is_expected else 0
            try:
                trace.head = trace.begin_head((time.time_ns() - (now - trace.began_ns)) // 1000)
                trace.recorder = Recorder(self._folder, trace.head, trace.began_ns, limits.records, self._clock_ns)
            except (OSError, FormatError) as error:
                self._failed += 1
                self._drop(trace)
                if not self._complained:
                    self._complained = True
                    _log.warning("starts are not recorded, reads go on: no trace in %s: %s", self._folder, error)
                return
            self._complained, self._crowded = False, True
            self._begun += 1
            for connection in trace.connections:
                trace.bind(connection, self._begin)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._watch, name="traces", daemon=True)
                self._thread.start()

    def _end(self, trace: StartTrace, why: End, ready_ms: int = 0) -> None:
        """Ends a trace, once, and decides whether it is evidence."""
        with self._lock:
            if trace.over:
                return
            self._drop(trace)
            recorder, begun = trace.recorder, trace.head
            if recorder is None or begun is None:
                return
            self._ended += 1
        apart_ns = _ns(self._limits.apart_s)
        alone = self._ended_traces.note_end(trace.key[0], trace.began_ns, self._clock_ns(), apart_ns)
        count = 0

        def finish(reads: Reads) -> TraceHead:
            nonlocal count
            count, flags = len(reads), trace.end_flags
            if why == End.OPEN:
                flags &= ~NEW  # what it lacks might have been read yet
            elif alone and looks_like_mount(reads):
                flags |= NEW
            return replace(begun, flags=flags, end=why, ready_ms=ready_ms, profile=trace.start.profile)

        try:
            head = recorder.end(finish)
        except OSError as error:
            _log.warning("the trace %s ends as it is: %s", recorder.path, error)
            with self._lock:
                self._failed += 1
            return
        self._ended_traces.add(trace.key, recorder.path, head, count, trace.began_ns)
        if head.is_evidence:
            with self._lock:
                self._evident += 1
            self._evidence(head, recorder.path)

    def _drop(self, trace: StartTrace) -> None:
        """Makes the connections of a trace read without it; must be called with the lock."""
        trace.over = True
        if self._running.get(trace.key) is trace:
            del self._running[trace.key]
        for connection in trace.connections:
            self._of.pop(connection, None)
            trace.bind(connection, self._begin)
        trace.connections = set()

    def _recorded(self) -> list[tuple[StartTrace, Recorder]]:
        """Returns the traces that have a file now."""
        with self._lock:
            return [(trace, trace.recorder) for trace in self._running.values() if trace.recorder is not None]

    def _watch(self) -> None:
        """Writes what was read, and ends traces that are over, while one runs."""
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
                if self._closed or not any(trace.recorder for trace in self._running.values()):
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
