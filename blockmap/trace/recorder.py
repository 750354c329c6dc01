"""Writes a trace while the start goes on. What is in the file survives the server, which may be killed at any moment.

A read costs one append to a list, of one number that says where and how much; of a read of one block it is the offset, which
is there already: to make another costs two more percent of a read. The list is drained ten times a second; when
each read began is known of those that leave the hit path, and evenly spread between these. A clock for each, or the mapping
of a file to write into, would cost twice as much: instructions that take 0.1 microseconds in a loop take ten times that among
the processor's other work. So does draining more often, which each time takes the interpreter's lock from the readers.
Reads that waited are kept in memory until the end, as only people look at them.
"""

import errno
import os
import threading
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np

from blockmap.format import BLOCK
from blockmap.format.trace import (
    FOR_PREFETCH,
    FOR_STORE,
    HEAD_BYTES,
    READ,
    WAIT,
    Reads,
    TraceHead,
    encode_head,
    encode_waits,
)
from blockmap.local.paths import TRACE_SUFFIX
from blockmap.volume.reads import LENGTH_BITS, Note, Slow, Source

RECORDS: Final = 65_536
_MOMENT = 1 << 62
"""The bit that marks a noted number as a time, in microseconds."""

_SLOW_S = 1e-3
"""Seconds after which a read of what is fetched ahead has waited: to decompress a chunk takes a quarter of that."""

_LENGTH = (1 << LENGTH_BITS) - 1


class Recorder:
    """The file of one trace; safe to share between threads."""

    def __init__(
        self,
        folder: Path,
        head: TraceHead,
        began_ns: int,
        records: int = RECORDS,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`began_ns` is when the export was opened, by `clock_ns`. OSError where the file cannot be made."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._began_ns, self._clock_ns = began_ns, clock_ns
        self._records = records
        self._noted: list[int] = []
        self.note: Note = self._noted.append
        """Takes a read that begins, as LENGTH_BITS says."""
        self._waits: list[tuple[int, int, int, int, int, bytes]] = []
        """The reads that waited, as WAIT has them; appended to without the lock."""
        self._lock = threading.Lock()  # guards what follows
        self._count = 0
        """How many reads the file has."""
        self._drained_ns = clock_ns()
        self._error: OSError | None = None
        self.path, self._fd = _create(folder, head.started_us)
        try:
            self._write(encode_head(head), 0)
        except BaseException:
            os.close(self._fd)
            with suppress(OSError):
                self.path.unlink()
            raise

    def mark(self) -> None:
        """Notes what time it is."""
        self.note(_MOMENT + self._clock_ns() // 1000)

    def waited(self, offset: int, length: int, slow: Slow) -> None:
        """Notes that a read which left the hit path has ended, if it waited."""
        if slow.source is Source.FETCHED:
            reason = FOR_STORE
        elif slow.source is Source.BUNDLE or slow.seconds >= _SLOW_S:
            reason = FOR_PREFETCH
        else:
            return
        if len(self._waits) < self._records:
            took_us = int(slow.seconds * 1e6)
            began_us = max((self._clock_ns() - self._began_ns) // 1000 - took_us, 0)
            self._waits.append((began_us, took_us, offset, length, reason, b""))

    def drain(self) -> None:
        """Writes what was noted since; never raises."""
        with self._lock:
            self._drain()

    def reads(self, first: int = 0) -> Reads:
        """Returns the reads from number `first` on; none after the end."""
        self.drain()
        with self._lock:
            return self._stored(first) if self._fd >= 0 else np.empty(0, READ)

    def end(self, finish: Callable[[Reads], TraceHead]) -> TraceHead:
        """Takes no more reads, and has the file begin with the head that `finish` makes. OSError where the trace is not
        whole. To be called once."""
        with self._lock:
            try:
                self._drain()
                head = finish(self._stored(0))
                self._write(encode_head(head), 0)
                if self._error is not None:
                    raise self._error
                with suppress(OSError):
                    self._write(encode_waits(np.array(self._waits, WAIT)), HEAD_BYTES + self._count * READ.itemsize)
            finally:
                os.close(self._fd)
                self._fd = -1
        return head

    def _drain(self) -> None:
        """Must be called with the lock."""
        before, self._drained_ns = self._drained_ns, self._clock_ns()  # what is noted from here on begins later
        noted = self._noted[:]
        del self._noted[: len(noted)]
        if not noted or self._fd < 0 or self._error is not None:
            return
        found = _decode(noted, before // 1000, self._drained_ns // 1000, self._began_ns // 1000)
        found = found[: self._records - self._count]
        try:
            self._write(found.tobytes(), HEAD_BYTES + self._count * READ.itemsize)
        except OSError as error:
            self._error = error
        else:
            self._count += len(found)

    def _write(self, data: bytes, at: int) -> None:
        if os.pwrite(self._fd, data, at) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _stored(self, first: int) -> Reads:
        size, at = (self._count - first) * READ.itemsize, HEAD_BYTES + first * READ.itemsize
        return np.frombuffer(os.pread(self._fd, max(size, 0), at), READ)


def _decode(noted: list[int], before_us: int, now_us: int, began_us: int) -> Reads:
    """Returns the reads of a list that was empty at `before_us`, with their times since `began_us`."""
    try:
        numbers: np.ndarray[Any, Any] = np.frombuffer(array("q", noted), np.int64)
    except OverflowError:  # beyond 64 GiB of a volume
        numbers = np.array(noted, object)
    is_read = (numbers < _MOMENT).astype(bool)
    own, moments = numbers[is_read], (numbers[~is_read] - _MOMENT).astype(np.int64)
    one_block = (own >= 0).astype(bool)
    found = np.empty(len(own), READ)
    found["offset"] = np.where(one_block, own, ~own >> LENGTH_BITS)
    found["length"] = np.where(one_block, BLOCK, ~own & _LENGTH)
    # A read's mark follows it, and gives its time. Marks of other threads may be a little out of order.
    known_at = np.concatenate(([-1], np.flatnonzero(~is_read) - 1, [len(noted)]))
    known_us = np.maximum.accumulate(np.concatenate(([before_us], moments, [max(now_us, before_us)])))
    times = np.interp(np.flatnonzero(is_read), known_at, known_us - began_us)
    found["time_us"] = np.clip(times, 0, (1 << 32) - 1)
    return found


def rewrite_head(path: Path, head: TraceHead) -> None:
    """Writes another head into a trace that has ended; OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, encode_head(head), 0)
    finally:
        os.close(fd)


def make_room(folder: Path, files: int, size: int) -> None:
    """Deletes the oldest traces, so that at most `files`, and `size` bytes, stay; OSError where the folder cannot be read."""
    found = sorted(folder.glob(f"*{TRACE_SUFFIX}"), reverse=True)
    kept_bytes = 0
    for number, path in enumerate(found):
        with suppress(FileNotFoundError):
            kept_bytes += path.stat().st_size
            if number >= files or kept_bytes > size:
                path.unlink()


def _create(folder: Path, started_us: int) -> tuple[Path, int]:
    for number in count():
        path = folder / f"{started_us:016d}-{number}{TRACE_SUFFIX}"
        with suppress(FileExistsError):
            return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    raise AssertionError
