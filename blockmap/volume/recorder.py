"""Writes a trace while it happens, into a mapped file: what is in it survives the server without a flush.

A read costs the next position from a counter, the time, and 16 bytes packed into the mapping; all of it under the
interpreter's lock, so that threads need none of their own.
"""

import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

import numpy as np

from blockmap.format.trace import HEAD_BYTES, READ, RECORD, Head, Reads, encode_head
from blockmap.volume.reads import Slow

RECORDS: Final = 65_536
SUFFIX: Final = ".trace"

Read = Callable[[memoryview, int], Slow | None]
"""As `View.read`."""

_NO_MORE = (TypeError, ValueError, struct.error)
"""What packing raises once the mapping is closed, or full."""


class Recorder:
    """The file of one trace."""

    def __init__(
        self,
        folder: Path,
        head: Head,
        began_ns: int,
        records: int = RECORDS,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`began_ns` is when the export was opened, by `clock_ns`. OSError where the file cannot be made."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._began_ns, self._clock_ns = began_ns, clock_ns
        self._records = records
        self.path, self._fd = _create(folder, head.started_us)
        size = HEAD_BYTES + records * RECORD.size
        try:
            # A sparse file would end the server by a signal, were the disk full when a page of it is first written.
            os.posix_fallocate(self._fd, 0, size)
            os.pwrite(self._fd, encode_head(head), 0)
            self._mapped = mmap.mmap(self._fd, size)
        except BaseException:
            os.close(self._fd)
            with suppress(OSError):
                self.path.unlink()
            raise
        self._position = count(HEAD_BYTES, RECORD.size).__next__
        self._lock = threading.Lock()  # guards the descriptor

    def around(self, read: Read) -> Read:
        """Notes each read, then does it."""
        pack, mapped, position = RECORD.pack_into, self._mapped, self._position
        clock_ns, began_ns, no_more = self._clock_ns, self._began_ns, _NO_MORE

        def record(buf: memoryview, offset: int) -> Slow | None:
            try:  # noqa: SIM105  a context manager costs as much again
                pack(mapped, position(), (clock_ns() - began_ns) // 1000, len(buf), offset)
            except no_more:
                pass
            return read(buf, offset)

        return record

    def reads(self, first: int = 0) -> Reads:
        """The reads from number `first` on; those behind one that is only just being noted come later. None at the end."""
        with self._lock:
            found = self._stored(first) if self._fd >= 0 else np.empty(0, READ)
        empty = np.flatnonzero(found["length"] == 0)
        return found[: int(empty[0])] if len(empty) else found

    def end(self, finish: Callable[[Reads], Head]) -> Head:
        """Takes no more reads, and cuts the file to what it holds under the head that `finish` makes. To be called once."""
        self._mapped.close()  # before the file is cut: a write past its end through the mapping ends the server
        with self._lock:
            try:
                found = self._stored(0)
                reads = found[found["length"] > 0]  # a read that was not noted in time left a hole
                head = finish(reads)
                data = encode_head(head) + reads.tobytes()
                os.pwrite(self._fd, data, 0)
                os.ftruncate(self._fd, len(data))
            finally:
                os.close(self._fd)
                self._fd = -1
        return head

    def _stored(self, first: int) -> Reads:
        """From the file, not the mapping, which could not be closed while an array looks into it."""
        size, at = (self._records - first) * RECORD.size, HEAD_BYTES + first * RECORD.size
        return np.frombuffer(os.pread(self._fd, size, at), READ)


def rewrite_head(path: Path, head: Head) -> None:
    """Says more in a trace that has ended; OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, encode_head(head), 0)
    finally:
        os.close(fd)


def make_room(folder: Path, files: int, size: int) -> None:
    """Deletes the oldest traces, so that at most so many and so many bytes stay; OSError where the folder cannot be read."""
    found = sorted(folder.glob(f"*{SUFFIX}"), reverse=True)
    kept_bytes = 0
    for number, path in enumerate(found):
        with suppress(FileNotFoundError):
            kept_bytes += path.stat().st_size
            if number >= files or kept_bytes > size:
                path.unlink()


def _create(folder: Path, started_us: int) -> tuple[Path, int]:
    for number in count():
        path = folder / f"{started_us:016d}-{number}{SUFFIX}"
        with suppress(FileExistsError):
            return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    raise AssertionError
