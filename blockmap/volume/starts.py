"""Starts of exports, and the trace that each leaves.

A start is that of one version under one label, with all connections that come while it lasts. It begins with its first
connection; its trace is made at the first read, so that who only looks at exports leaves none. It ends as `End` says; from
then on reads go to the view as if nothing had been.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from blockmap.errors import FormatError
from blockmap.format.digest import from_hex
from blockmap.format.trace import EXACT, NEW, End, Head, Reads
from blockmap.volume.evidence import Touched, looks_like_mount
from blockmap.volume.reads import Slow
from blockmap.volume.recorder import RECORDS, Read, Recorder, make_room, rewrite_head
from blockmap.volume.view import View

_log = logging.getLogger(__name__)

_TOLD = 32
"""Traces that have ended, of which the server tells."""
_LATE_S = 600.0

_Key = tuple[str, str]
"""The export by digest, and the label."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a trace ends, what counts as another start, and how much of all this is kept."""

    long_s: float = 60.0
    quiet_s: float = 5.0
    look_s: float = 1.0
    """Between looks at what was recorded."""
    expect_s: float = 30.0
    """How long it counts that somebody is about to open an export."""
    apart_s: float = 60.0
    """A start so soon after the trace of another of its version may find pages in the kernel's cache."""
    records: int = RECORDS
    files: int = 200
    bytes: int = 64 << 20


class Connection(Protocol):
    """What reads come through."""

    view: View
    read: Read


@dataclass(slots=True, eq=False)
class _Start:
    key: _Key
    view: View
    began_ns: int
    connections: set[Connection]
    over: bool = False
    flags: int = 0
    head: Head | None = None
    recorder: Recorder | None = None
    seen: int = 0
    """Reads that were looked at."""
    touched: Touched = field(default_factory=Touched)
    touched_s: float = 0.0
    """When something was last read for the first time, or waited for; since the beginning."""


@dataclass(slots=True, eq=False)
class _Ended:
    key: _Key
    path: Path
    head: Head
    reads: int
    began_ns: int


class Starts:
    """The starts of one server; safe to share between threads.

    `ended` is called with each trace that is evidence, from a thread that has other things to do.
    """

    def __init__(
        self,
        folder: Path,
        ended: Callable[[Head, Path], None],
        limits: Limits | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._folder = folder
        self._evidence = ended
        self._limits = limits or Limits()
        self._clock_ns = clock_ns
        self._wake = threading.Event()
        self._lock = (
            threading.Lock()
        )  # guards what follows, and starts; held while a file is made, not while one is read
        self._running: dict[_Key, _Start] = {}
        self._of: dict[Connection, _Start] = {}
        self._expected: dict[_Key, tuple[int, int]] = {}
        """Flags of the next start, and until when they count."""
        self._ended_ns: dict[str, int] = {}
        """When the latest trace of an export ended."""
        self._latest: deque[_Ended] = deque(maxlen=_TOLD)
        self._thread: threading.Thread | None = None
        self._closed = self._complained = self._crowded = False
        self._begun = self._ended = self._evident = self._failed = 0

    def join(self, connection: Connection, label: str) -> None:
        """A connection was opened: its reads belong to the start that runs, or begin one."""
        key = connection.view.name, label
        with self._lock:
            start = self._running.get(key)
            if start is None:
                start = _Start(key, connection.view, self._clock_ns(), set())
                self._running[key] = start
            start.connections.add(connection)
            self._of[connection] = start
            self._bind(start, connection)

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
        until = self._clock_ns() + _ns(self._limits.expect_s)
        with self._lock:
            self._expected = {key: each for key, each in self._expected.items() if each[1] > self._clock_ns()}
            self._expected[export, label] = NEW | (EXACT if exact else 0), until

    def ready(self, export: str, label: str) -> Path | None:
        """The program of an export (by digest) is ready: ends its trace, which is returned, or says so in one that has
        ended already; None where there is neither."""
        key = export, label
        with self._lock:
            start = self._running.get(key)
            late = next((each for each in self._latest if each.key == key), None)
        now = self._clock_ns()
        if start is not None and start.recorder is not None:
            self._end(start, End.READY, (now - start.began_ns) // 1_000_000)
            return start.recorder.path
        if late is None or late.head.ready_ms or late.head.end == End.CLOSED or now - late.began_ns > _ns(_LATE_S):
            return None
        late.head = replace(late.head, ready_ms=(now - late.began_ns) // 1_000_000)
        try:
            rewrite_head(late.path, late.head)
        except OSError as error:
            _log.warning("%s does not say when the program was ready: %s", late.path, error)
        return late.path

    def look(self) -> None:
        """Ends the traces that nothing new comes to."""
        with self._lock:
            running = [(start, start.recorder) for start in self._running.values() if start.recorder is not None]
        for start, recorder in running:
            self._look_at(start, recorder)

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
                _described(start.key, start.recorder.path, start.head, start.seen, True)
                for start in self._running.values()
                if start.recorder is not None and start.head is not None
            ]
            ended = [_described(each.key, each.path, each.head, each.reads, False) for each in self._latest]
        return [*reversed(running), *ended]

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

    def _bind(self, start: _Start, connection: Connection) -> None:
        """Has a connection's reads go where they belong now; with the lock."""
        read = connection.view.read
        if start.over:
            connection.read = read
        elif start.recorder is not None:
            connection.read = start.recorder.around(read)
        else:

            def first(buf: memoryview, offset: int) -> Slow | None:
                self._begin(start)
                return connection.read(buf, offset)

            connection.read = first

    def _begin(self, start: _Start) -> None:
        """Makes the trace, at the first read."""
        with self._lock:
            if start.over or start.recorder is not None:
                return
            now, limits = self._clock_ns(), self._limits
            if now - start.began_ns > _ns(limits.long_s):
                start.began_ns = now  # the device was made long before somebody used it
            start.touched_s = (now - start.began_ns) / 1e9
            flags, until = self._expected.pop(start.key, (0, 0))
            start.flags = flags if now < until else 0
            try:
                start.head = _head(start, (time.time_ns() - (now - start.began_ns)) // 1000)
                start.recorder = Recorder(self._folder, start.head, start.began_ns, limits.records, self._clock_ns)
                self._complained = False
                self._begun += 1
                self._crowded = True
                self._keep_looking()
            except (OSError, FormatError) as error:
                self._failed += 1
                self._drop(start)
                if not self._complained:
                    self._complained = True
                    _log.warning("starts are not recorded, reads go on: no trace in %s: %s", self._folder, error)
                return
            for connection in start.connections:
                self._bind(start, connection)

    def _drop(self, start: _Start) -> None:
        """Ends a start for its connections; with the lock."""
        start.over = True
        if self._running.get(start.key) is start:
            del self._running[start.key]
        for connection in start.connections:
            self._of.pop(connection, None)
            self._bind(start, connection)
        start.connections = set()

    def _keep_looking(self) -> None:
        """Has a thread look while a trace runs; with the lock."""
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._watch, name="traces", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        while True:
            self._delete_old()
            self._wake.wait(self._limits.look_s)
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

    def _look_at(self, start: _Start, recorder: Recorder) -> None:
        reads = recorder.reads(start.seen)
        now_s = (self._clock_ns() - start.began_ns) / 1e9
        start.seen += len(reads)
        touched_us = start.touched.add(reads)
        if touched_us is not None:
            start.touched_s = max(start.touched_s, touched_us / 1e6)
        if start.view.waiting:
            start.touched_s = now_s
        if recorder.is_full(start.seen):
            self._end(start, End.FULL)
        elif now_s >= self._limits.long_s:
            self._end(start, End.LONG)
        elif now_s - start.touched_s >= self._limits.quiet_s:
            self._end(start, End.QUIET)

    def _end(self, start: _Start, why: End, ready_ms: int = 0) -> None:
        """Ends a start, once; decides what its trace is."""
        with self._lock:
            if start.over:
                return
            recorder, before, export = start.recorder, start.head, start.key[0]
            self._drop(start)
            if recorder is None or before is None:
                return
            now, apart = self._clock_ns(), _ns(self._limits.apart_s)
            alone = export not in self._ended_ns or self._ended_ns[export] < start.began_ns - apart
            self._ended_ns = {name: at for name, at in self._ended_ns.items() if at >= now - apart - _ns(_LATE_S)}
            self._ended_ns[export] = now
            self._ended += 1

        def finish(reads: Reads) -> Head:
            start.seen = len(reads)
            flags = start.flags
            if alone and why != End.OPEN and looks_like_mount(reads):
                flags |= NEW
            return replace(before, flags=flags, end=why, ready_ms=ready_ms, profile=start.view.profile)

        try:
            head = recorder.end(finish)
        except OSError as error:
            _log.warning("the trace %s is cut off: %s", recorder.path, error)
            with self._lock:
                self._failed += 1
            return
        with self._lock:
            self._latest.appendleft(_Ended(start.key, recorder.path, head, start.seen, start.began_ns))
            self._evident += head.is_evidence
        if head.is_evidence and why != End.OPEN:
            self._evidence(head, recorder.path)


def _head(start: _Start, started_us: int) -> Head:
    export, label = start.key
    repo, _, digest = export.partition("@sha256:")
    view = start.view
    return Head(
        repo, label, from_hex(digest), view.root.digest, view.size, started_us, start.flags, profile=view.profile
    )


def _described(key: _Key, path: Path, head: Head, reads: int, runs: bool) -> dict[str, object]:
    return {
        "path": str(path), "export": key[0], "label": key[1], "started": head.started_us / 1e6, "reads": reads,
        "state": "running" if runs else head.end.name.lower(), "new": head.is_evidence, "exact": bool(head.flags & EXACT),
        "ready_ms": head.ready_ms, "profile": head.profile,
    }  # fmt: skip


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
