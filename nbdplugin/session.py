"""Connections: each has a volume and a start, and counts what is read, in a tally for each of its threads.

nbdkit's worker threads belong to one connection, so a tally has one writer. When a connection closes, its tallies are
added to its export's.
"""

import os
import threading
import time
from typing import cast

from blockmap.errors import HostError
from blockmap.server.registry import Opened
from blockmap.server.server import Server
from blockmap.volume.reads import Read, Slow, Tally
from blockmap.volume.volume import WritableVolume

_EXPORTS_KEPT = 64
OTHER = "other"
"""The name for reads of the exports closed longest ago, once there are too many to list each."""


class Session:
    """One client's connection."""

    __slots__ = ("_tallies", "close", "is_labelled", "is_local", "read", "start", "volume", "writable")

    def __init__(self, opened: Opened, *, is_local: bool, is_labelled: bool) -> None:
        self.volume, self.start, self.close = opened.volume, opened.start, opened.close
        self.writable = cast(WritableVolume, self.volume)
        """The volume, for what only connections that may write are asked."""
        self.is_local, self.is_labelled = is_local, is_labelled
        self.read: Read = self.volume.reader(self.start)
        """The volume's reader; it goes through the recorder while a trace runs."""
        self._tallies: dict[int, Tally] = {}
        """Tallies by thread."""

    def tally(self) -> Tally:
        """Returns the tally of the calling thread."""
        return self._tallies.setdefault(threading.get_ident(), Tally())

    def read_timed(self, buf: memoryview, offset: int, tally: Tally) -> Slow | None:
        """Does what `read` does, and measures the latency of a hit."""
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

    def __init__(self, server: Server, most: int | None = None) -> None:
        """`most` is how many there may be at once; None for any number."""
        self._server = server
        self._most = most
        self._started = time.time()
        self._lock = threading.Lock()  # guards what follows
        self._count = 0
        """Connections that are open, or about to be."""
        self._open: dict[str, set[Session]] = {}
        """By export."""
        self._closed: dict[str, Tally] = {}
        """Tallies by export, the one closed last at the end."""

    def open(self, export: str, is_local: bool) -> Session:
        """Opens a connection of a client, of this host or another, to what `export` stands for now; HostError if there are
        too many, NotFound, UsageError, StoreError, Corrupt."""
        with self._lock:
            if self._count == self._most:
                raise HostError(
                    f"{self._most:,} connections are open, and the server's limits allow no more: it said at its start which"
                )
            self._count += 1
        try:
            opened = self._server.open(export)
        except BaseException:
            with self._lock:
                self._count -= 1
            raise
        session = Session(opened, is_local=is_local, is_labelled="+" in export)
        if opened.is_traced:
            self._server.traces.join(session)
        with self._lock:
            self._open.setdefault(session.volume.name, set()).add(session)
        return session

    def close(self, session: Session) -> None:
        """Closes a connection; must be called once, when none of its threads runs any more."""
        self._server.traces.leave(session)
        name = session.volume.name
        with self._lock:
            self._count -= 1
            self._open[name].discard(session)
            if not self._open[name]:
                del self._open[name]
            total = self._closed.pop(name, None) or Tally()
            session.add_to(total)
            self._closed[name] = total
            self._forget()
        session.close()

    def status(self) -> dict[str, object]:
        """Returns the server's status with that of the process, and `reads`: by export, since the start of the server."""
        totals: dict[str, Tally] = {}
        with self._lock:
            for name, tally in self._closed.items():
                totals.setdefault(name, Tally()).merge(tally)
            for name, sessions in self._open.items():
                total = totals.setdefault(name, Tally())
                for session in sessions:
                    session.add_to(total)
        reads = [{"export": name, **total.status()} for name, total in totals.items()]
        started = {"pid": os.getpid(), "started": self._started, "seconds": time.time() - self._started}
        return {**started, **self._server.status(), "reads": reads}

    def _forget(self) -> None:
        closed = [name for name in self._closed if name not in self._open and name != OTHER]
        for name in closed[: max(len(closed) - _EXPORTS_KEPT, 0)]:
            self._closed.setdefault(OTHER, Tally()).merge(self._closed.pop(name))
