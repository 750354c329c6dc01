"""Follows one traced start of an export, and decides when it ends."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from blockmap.format import BLOCK
from blockmap.format.digest import from_hex
from blockmap.format.trace import DECLARED, EXACT, End, TraceHead
from blockmap.trace.evidence import Touched
from blockmap.trace.recorder import RECORDS, Recorder
from blockmap.volume.reads import Read, Slow
from blockmap.volume.start import Key, Start
from blockmap.volume.volume import Volume


@dataclass(frozen=True, slots=True)
class Limits:
    """When a trace ends, what counts as another start, and how much of all this is kept."""

    long_s: float = 60.0
    quiet_s: float = 5.0
    drain_s: float = 0.1
    """Seconds between writes of what was recorded."""
    look_s: float = 1.0
    """Seconds between looks at it."""
    expect_s: float = 30.0
    """Seconds for which an announced open is expected."""
    apart_s: float = 60.0
    """Seconds after a trace of the same version during which a start may find pages in the kernel's cache."""
    records: int = RECORDS
    files: int = 200
    bytes: int = 64 << 20


class Connection(Protocol):
    """A connection through which a start reads."""

    @property
    def volume(self) -> Volume: ...

    @property
    def start(self) -> Start: ...

    @property
    def is_local(self) -> bool:
        """True if the client is on this host."""

    @property
    def is_labelled(self) -> bool:
        """True if the client named a label."""

    read: Read
    """Where reads go now: to the volume, by way of the recorder while a trace runs."""


@dataclass(slots=True, eq=False)
class StartTrace:
    """A start while it is traced. Its owner's lock guards it, but for what `look` keeps, which belongs to the thread that looks."""

    start: Start
    volume: Volume
    began_ns: int
    connections: set[Connection] = field(default_factory=set)
    over: bool = False
    is_expected: bool = False
    """True if somebody said that the device is new; then `flags` are as was said."""
    flags: int = 0
    all_local: bool = True
    all_labelled: bool = True
    head: TraceHead | None = None
    recorder: Recorder | None = None
    seen: int = 0
    """How many reads were looked at."""
    touched: Touched = field(default_factory=Touched)
    touched_s: float = 0.0
    """When something was last read for the first time, or waited for, in seconds since the beginning."""

    @property
    def key(self) -> Key:
        return self.start.key

    @property
    def end_flags(self) -> int:
        """Flags of the trace that ends: a client of another host, or one that declares nothing, has a trace teach nobody."""
        is_start = self.flags & DECLARED if self.is_expected else self.all_labelled
        return self.flags & ~DECLARED | (DECLARED if is_start and self.all_local else 0)

    def add(self, connection: Connection) -> None:
        self.connections.add(connection)
        self.all_local &= connection.is_local
        self.all_labelled &= connection.is_labelled

    def begin_head(self, started_us: int) -> TraceHead:
        """Returns the head of a trace that runs; its end decides whether it is evidence."""
        start = self.start
        repo, _, digest = start.version.partition("@sha256:")
        return TraceHead(
            repo,
            start.label,
            from_hex(digest),
            start.root.digest,
            start.root.size * BLOCK,
            started_us,
            self.flags & EXACT,
        )

    def bind(self, connection: Connection, begin: Callable[["StartTrace"], None]) -> None:
        """Sends the reads of a connection where they belong now: by way of `begin`, of the recorder, or straight to the volume."""
        reader, start = connection.volume.reader, connection.start
        if self.over:
            connection.read = reader(start)
        elif self.recorder is not None:
            connection.read = reader(start, self.recorder)
        else:

            def first(buf: memoryview, offset: int) -> Slow | None:
                begin(self)
                return connection.read(buf, offset)

            connection.read = first

    def look(self, recorder: Recorder, now_ns: int, limits: Limits) -> End | None:
        """Looks at what was recorded since; returns why the start is over, if it is."""
        now_s = (now_ns - self.began_ns) / 1e9
        reads = recorder.reads(self.seen)
        self.seen += len(reads)
        touched_us = self.touched.add(reads)
        if touched_us is not None:
            self.touched_s = max(self.touched_s, touched_us / 1e6)
        if self.volume.waiting:
            self.touched_s = now_s
        if self.seen >= limits.records:
            return End.FULL
        if now_s >= limits.long_s:
            return End.LONG
        return End.QUIET if now_s - self.touched_s >= limits.quiet_s else None
