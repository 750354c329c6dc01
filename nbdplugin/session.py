"""Connections: each has a volume, and counts what is read from it, a tally for each of its threads.

nbdkit's worker threads belong to one connection, so a tally has one writer. When a connection closes, its tallies are
added to its export's.
"""

import os
import threading
import time

from blockmap.format.refs import DEFAULT_LABEL, parse_reference
from blockmap.server.exports import Exports
from blockmap.trace.manager import TraceManager
from blockmap.volume.readonly import ReadOnlyVolume
from blockmap.volume.reads import Read, Slow, Tally

_EXPORTS_KEPT = 64
OTHER = "other"
"""What was read from exports that were closed longest ago, once there are too many to tell one by one."""


class Session:
    """One connection."""

    __slots__ = ("_tallies", "read", "view")

    def __init__(self, view: ReadOnlyVolume) -> None:
        self.view = view
        self.read: Read = view.read
        """As the view's; by way of the recorder, while a trace runs."""
        self._tallies: dict[int, Tally] = {}
        """By thread."""

    def tally(self) -> Tally:
        """The calling thread's."""
        return self._tallies.setdefault(threading.get_ident(), Tally())

    def read_timed(self, buf: memoryview, offset: int, tally: Tally) -> Slow | None:
        """As `read`, with the latency of a hit."""
        began = time.perf_counter()
        slow = self.read(buf, offset)
        if slow is None:
            tally.hit_took(time.perf_counter() - began)
        return slow

    def add_to(self, total: Tally) -> None:
        for tally in list(self._tallies.values()):
            total.merge(tally)


class Sessions:
    """All connections of a server; safe to share between threads."""

    def __init__(self, exports: Exports, starts: TraceManager) -> None:
        self._exports = exports
        self._starts = starts
        self._started = time.time()
        self._lock = threading.Lock()  # guards what follows
        self._open: set[Session] = set()
        self._closed: dict[str, Tally] = {}
        """By export, the one closed last at the end."""

    def open(self, export: str) -> Session:
        """A connection to what `export` stands for now; NotFound, UsageError, StoreError, Corrupt."""
        session = Session(self._exports.open(export))
        self._starts.join(session, parse_reference(export).label or DEFAULT_LABEL)
        with self._lock:
            self._open.add(session)
        return session

    def close(self, session: Session) -> None:
        """To be called once, when none of its threads runs any more."""
        self._starts.leave(session)
        with self._lock:
            self._open.discard(session)
            total = self._closed.pop(session.view.name, None) or Tally()
            session.add_to(total)
            self._closed[session.view.name] = total
            self._forget()
        session.view.close()

    def status(self) -> dict[str, object]:
        """What the exports say; the process; and `reads`: by export, since the start of the server."""
        totals: dict[str, Tally] = {}
        with self._lock:
            for name, tally in self._closed.items():
                totals.setdefault(name, Tally()).merge(tally)
            for session in self._open:
                session.add_to(totals.setdefault(session.view.name, Tally()))
        reads = [{"export": name, **total.status()} for name, total in totals.items()]
        started = {"pid": os.getpid(), "started": self._started, "seconds": time.time() - self._started}
        return {**started, **self._exports.status(), "reads": reads, "traces": self._starts.status()}

    def _forget(self) -> None:
        open_now = {session.view.name for session in self._open}
        closed = [name for name in self._closed if name not in open_now and name != OTHER]
        for name in closed[: max(len(closed) - _EXPORTS_KEPT, 0)]:
            self._closed.setdefault(OTHER, Tally()).merge(self._closed.pop(name))
