"""The interface of a volume: what an export is to its clients, whatever stores its bytes."""

from typing import Protocol

from blockmap.durable import Buffer
from blockmap.volume.reads import Read, ReadRecorder
from blockmap.volume.start import Start


class Volume(Protocol):
    """A volume that is open; safe to share between threads, and between starts.

    Methods take the start for which they read, since the volume itself keeps nothing of a start. All of these raise Corrupt,
    NotFound and StoreUnavailable, but for `want`.
    """

    @property
    def name(self) -> str:
        """Returns the name of the volume; that of a version is its export name by digest."""

    @property
    def size(self) -> int:
        """Returns the size in bytes."""

    @property
    def writable(self) -> bool:
        """Returns True if clients may write."""

    @property
    def waiting(self) -> int:
        """Returns the number of reads under way off the hit path, among them all that wait for the store."""

    def reader(self, start: Start, recorder: ReadRecorder | None = None) -> Read:
        """Returns the function that reads for a start; a recorder notes each read before it is done, and of one that leaves
        the hit path when it began and how it ended."""

    def extents(self, offset: int, count: int, start: Start) -> list[tuple[int, int, bool]]:
        """Returns (offset, length, hole) of the bytes from `offset` on, clamped to `count`; may end early, but is never
        empty."""

    def want(self, offset: int, count: int, start: Start) -> None:
        """Has a range fetched into the cache in the background; never blocks or raises."""

    def want_nodes(self, offset: int) -> None:
        """Has the nodes of the tree fetched that lead to a byte, in the background, unless the store is on this host; never blocks
        or raises."""


class WritableVolume(Volume, Protocol):
    """A volume to which clients write. What is written is seen by all at once, and durable after `flush`.

    Methods raise DiskFull, which changes nothing that was durable, and HostError.
    """

    def write(self, data: Buffer, offset: int) -> None:
        """Writes bytes."""

    def zero(self, offset: int, count: int, *, allocate: bool = False) -> None:
        """Makes a range zeros, at once; with `allocate`, later writes to it find room."""

    def trim(self, offset: int, count: int) -> None:
        """Says that a range is of no use any more; it reads as zeros from now on."""

    def flush(self) -> None:
        """Makes all durable that was answered before, on any connection."""
