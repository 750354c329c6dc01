"""Keeps what a detached container says, and reads it.

The container writes to the file itself, and nobody need be there. A log that has become long loses its beginning, which becomes a
hole: so what is written to it, or read from it, goes on.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from blockmap.local import holes

_MAX_BYTES = 64 << 20
"""What a log keeps at most, from its end: some 500,000 lines."""
_BLOCK_BYTES = 1 << 16
"""What is cut off is a whole number of these: blocks of file systems have at most so many bytes."""
_PIECE_BYTES = 1 << 16
_POLL_SECONDS = 0.05


def cut(path: Path, max_bytes: int = _MAX_BYTES) -> None:
    """Gives back the room of all but the end of a log, where the file system can; OSError where it is gone."""
    with open(path, "r+b", buffering=0) as log:
        about = os.fstat(log.fileno())
        if about.st_blocks * 512 > max_bytes:
            holes.punch(log.fileno(), 0, (about.st_size - max_bytes) // _BLOCK_BYTES * _BLOCK_BYTES)


def read_log(path: Path, tail: int | None, goes_on: Callable[[], bool] | None) -> Iterator[bytes]:
    """Yields the last lines of a log, all of them where `tail` is None, then what is added while `goes_on` says that there may be
    more; OSError."""
    with open(path, "rb", buffering=0) as log:
        first = _first_line(log.fileno())
        log.seek(first if tail is None else _last_lines(log.fileno(), first, tail))
        while True:
            more = goes_on is not None and goes_on()  # asked first: what was said until the end is read after it
            while piece := log.read(_PIECE_BYTES):
                yield piece
            if not more:
                return
            time.sleep(_POLL_SECONDS)


def _first_line(fd: int) -> int:
    """Returns where the first whole line begins."""
    try:
        start = os.lseek(fd, 0, os.SEEK_DATA)
    except OSError:  # there is nothing in it
        return 0
    return start + os.pread(fd, _PIECE_BYTES, start).find(b"\n") + 1 if start else 0


def _last_lines(fd: int, first: int, count: int) -> int:
    """Returns where the last lines begin, at `first` where there are fewer."""
    position = end = os.fstat(fd).st_size
    if count == 0 or end == first:
        return end
    left = count + (os.pread(fd, 1, end - 1) == b"\n")  # an end of a line that has no line behind it
    while position > first:
        start = max(position - _PIECE_BYTES, first)
        piece = os.pread(fd, position - start, start)
        found = len(piece)
        while (found := piece.rfind(b"\n", 0, found)) >= 0:
            left -= 1
            if left == 0:
                return start + found + 1
        position = start
    return first
