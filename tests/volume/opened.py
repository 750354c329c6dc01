"""A volume that is open, with what it is made of, and one start that reads it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockmap.cache.cache import Cache
from blockmap.fetch.fetcher import Fetcher
from blockmap.format import BLOCK
from blockmap.format.hint import BundleRef
from blockmap.format.tree import Root
from blockmap.origin.link import Link
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.origin.ranges import Ranges
from blockmap.replay.replay import Replay
from blockmap.replay.replays import Replays
from blockmap.store.base import Reader
from blockmap.volume.readonly import ReadOnlyVolume
from blockmap.volume.reads import Note, Slow
from blockmap.volume.start import Start

VERSION = "a@sha256:0"


class NotedReads:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.noted: list[int] = []
        self.note: Note = self.noted.append
        self.marked = 0
        self.ended: list[tuple[int, int, Slow]] = []

    def mark(self) -> None:
        self.marked += 1

    def waited(self, offset: int, length: int, slow: Slow) -> None:
        self.ended.append((offset, length, slow))


class OpenVolume:
    """Reads of one start, which replays a bundle where it is given one."""

    def __init__(
        self,
        store: Reader,
        root: Root,
        directory: Path,
        about: BundleRef | None,
        cap_bytes: int,
        link: Link | None = None,
    ) -> None:
        self.root = root
        self.cache = Cache(directory, cap_bytes)
        ranges = Ranges(store, link)
        self.fetcher = Fetcher(ranges, self.cache)
        self.replays = Replays(ranges, self.cache, self.fetcher.staging, self.fetcher.verifier)
        self.volume = ReadOnlyVolume(VERSION, root, self.fetcher, OutagePolicy(0))
        self.start = Start(VERSION, root, replay=None if about is None else self.begin(about))
        self.read = self.volume.reader(self.start)
        self.size = self.volume.size

    @property
    def replay(self) -> Replay:
        """The bundle of the start."""
        assert self.start.replay is not None
        return self.start.replay

    def begin(self, about: BundleRef) -> Replay:
        """Begins to bring a bundle of the volume."""
        return self.replays.begin(about, lambda: self.root)

    def extents(self, offset: int, count: int) -> list[tuple[int, int, bool]]:
        return self.volume.extents(offset, count, self.start)

    def want(self, offset: int, count: int) -> None:
        self.volume.want(offset, count, self.start)

    def close(self) -> None:
        self.fetcher.stop()
        self.replays.close()
        self.fetcher.close()
        self.cache.close()


@contextmanager
def opened(
    store: Reader,
    root: Root,
    directory: Path,
    about: BundleRef | None = None,
    cap_bytes: int = 1 << 30,
    link: Link | None = None,
) -> Iterator[OpenVolume]:
    volume = OpenVolume(store, root, directory, about, cap_bytes, link)
    try:
        yield volume
    finally:
        volume.close()


def read(view: OpenVolume, offset: int, length: int) -> bytes:
    buf = bytearray(b"\xee" * length)
    view.read(memoryview(buf), offset)
    return bytes(buf)


def read_blocks(view: OpenVolume, block: int, blocks: int = 1) -> bytes:
    return read(view, block * BLOCK, blocks * BLOCK)
