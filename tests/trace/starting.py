"""A clock that stands still, a volume that answers at once, and what reads them."""

import hashlib
from pathlib import Path

import numpy as np

from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.trace import READ, Reads, Trace, TraceHead, decode
from blockmap.format.tree import Root
from blockmap.volume.reads import LENGTH_BITS, Read, ReadRecorder, Slow
from blockmap.volume.start import Start

VERSION = hashlib.sha256(b"version").hexdigest()
EXPORT = f"a@sha256:{VERSION}"
SIZE = 1 << 34

MOUNT = [
    (0, 4096), (1024, 1024), (4096, 4096), (SIZE - 4096, 4096), *((n * 1_000_000 // BLOCK * BLOCK, 8192) for n in range(1, 20))
]  # fmt: skip
"""The first reads of a kernel that mounts."""
COPY = [(n * 65536, 65536) for n in range(200)]


class Clock:
    def __init__(self) -> None:
        self.ns = 10**15

    def __call__(self) -> int:
        return self.ns

    def forward(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


def noted(offset: int, length: int) -> int:
    """A read, as a recorder takes it."""
    return offset if length == BLOCK else ~(offset << LENGTH_BITS | length)


class StandingVolume:
    """A volume that answers reads at once, with nothing."""

    writable = False

    def __init__(self, name: str = EXPORT) -> None:
        self.name = name
        self.size = SIZE
        self.root = Root(Digest(bytes(31) + b"\1"), SIZE // BLOCK)
        self.waiting = 0

    def read(self, buf: memoryview, offset: int) -> Slow | None:
        return None

    def reader(self, start: Start, recorder: ReadRecorder | None = None) -> Read:
        def read(buf: memoryview, offset: int) -> Slow | None:
            assert recorder
            recorder.note(noted(offset, len(buf)))
            recorder.mark()
            return self.read(buf, offset)

        return read if recorder else self.read

    def extents(self, offset: int, count: int, start: Start) -> list[tuple[int, int, bool]]:
        raise NotImplementedError

    def want(self, offset: int, count: int, start: Start) -> None:
        raise NotImplementedError


class Connection:
    def __init__(self, volume: StandingVolume, label: str = "default", *, is_local: bool = True) -> None:
        self.volume, self.is_local, self.is_labelled = volume, is_local, label != "default"
        self.start = Start(volume.name, volume.root, label)
        self.read: Read = volume.read

    def read_all(self, ranges: list[tuple[int, int]]) -> None:
        for offset, length in ranges:
            self.read(memoryview(bytearray(length)), offset)


def head(started_us: int = 1) -> TraceHead:
    return TraceHead("a", "default", Digest(bytes(32)), Digest(bytes(32)), SIZE, started_us)


def reads(ranges: list[tuple[int, int]], times_us: list[int] | None = None) -> Reads:
    found = np.zeros(len(ranges), READ)
    found["offset"] = [offset for offset, _ in ranges]
    found["length"] = [length for _, length in ranges]
    found["time_us"] = times_us or list(range(len(ranges)))
    return found


def stored(path: Path) -> Trace:
    return decode(path.read_bytes())


def ranges(trace: Trace) -> list[tuple[int, int]]:
    return [(int(each["offset"]), int(each["length"])) for each in trace.reads]
