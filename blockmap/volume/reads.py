"""Counts what was read from a volume, by where it came from.

A tally belongs to one thread, so that counting costs a read no lock. Its sums are exact. On the hit path the latency is
measured of the first few reads, then of ever fewer down to one in MOST, each of which counts for those since the last.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from blockmap.volume.histogram import Histogram

MOST = 64
"""Hits that one measured hit stands for, at most."""


class Source(IntEnum):
    """Where the bytes of a read came from; if from several places, the slowest, which is the highest."""

    ZEROS = 0
    LOCAL = 1
    """A layer of a clone."""
    CACHE = 2
    BUNDLE = 3
    """The read waited for it."""
    FETCHED = 4


class Slow(NamedTuple):
    """The outcome of a read that left the hit path."""

    source: Source
    seconds: float


Read = Callable[[memoryview, int], Slow | None]
"""Fills a buffer with the bytes at an offset; returns None from the hit path."""

LENGTH_BITS: Final = 27
"""A read of one block is noted as its offset. Any other is noted as its offset, shifted by this many bits, and its length,
which is 64 MiB at most; all bits of that are inverted, which makes it negative."""

Note = Callable[[int], None]
"""Takes a read that begins, as LENGTH_BITS says."""


class ReadRecorder(Protocol):
    """Records the reads of a start."""

    @property
    def note(self) -> Note: ...

    def mark(self) -> None:
        """Notes what time it is, after the note of a read that leaves the hit path."""

    def waited(self, offset: int, length: int, slow: Slow) -> None:
        """Notes that such a read has ended."""


class _Served:
    __slots__ = ("bytes", "latency", "reads")

    def __init__(self) -> None:
        self.reads = self.bytes = 0
        self.latency = Histogram()


class Tally:
    """Reads of one thread, or the sum of many."""

    __slots__ = ("errors", "hit_bytes", "hits", "measure_at", "measured", "served")

    def __init__(self) -> None:
        self.hits = self.hit_bytes = 0
        """Reads on the hit path."""
        self.measured = self.measure_at = 0
        """How many hits the latency stands for, and how many there are when the next is to be measured."""
        self.errors = 0
        self.served = tuple(_Served() for _ in Source)
        """Reads off the hit path, by source; the latency of hits is with that of the other reads from the cache."""

    def hit_took(self, seconds: float) -> None:
        """Takes the latency of a hit that is yet to be counted."""
        hits = self.hits + 1
        self.served[Source.CACHE].latency.add(seconds, hits - self.measured)
        self.measured = hits
        self.measure_at = hits + min(hits // 4, MOST - 1)

    def slow(self, slow: Slow, count: int) -> None:
        """Counts a read of `count` bytes that left the hit path."""
        served = self.served[slow.source]
        served.reads += 1
        served.bytes += count
        served.latency.add(slow.seconds)

    def merge(self, other: "Tally") -> None:
        self.hits += other.hits
        self.hit_bytes += other.hit_bytes
        self.errors += other.errors
        for own, its in zip(self.served, other.served, strict=True):
            own.reads += its.reads
            own.bytes += its.bytes
            own.latency.merge(its.latency)

    def status(self) -> dict[str, object]:
        """Returns errors, and by source: reads, bytes and latency."""
        sources = {
            source.name.lower(): {
                "reads": served.reads + (self.hits if source is Source.CACHE else 0),
                "bytes": served.bytes + (self.hit_bytes if source is Source.CACHE else 0),
                "latency": served.latency.status(),
            }
            for source, served in zip(Source, self.served, strict=True)
        }
        return {"errors": self.errors, "sources": sources}
