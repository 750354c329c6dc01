"""Reads what a detached container has said."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PIECE_BYTES = 1 << 16
_POLL_SECONDS = 0.05


def read_log(path: Path, tail: int | None, goes_on: Callable[[], bool] | None) -> Iterator[bytes]:
    """Yields the last lines of a log, all of them where `tail` is None, then what is added while `goes_on` says that there may be
    more; OSError."""
    with open(path, "rb", buffering=0) as log:
        log.seek(0 if tail is None else _last_lines(log.fileno(), tail))
        while True:
            more = goes_on is not None and goes_on()  # asked first: what was said until the end is read after it
            while piece := log.read(_PIECE_BYTES):
                yield piece
            if not more:
                return
            time.sleep(_POLL_SECONDS)


def _last_lines(fd: int, count: int) -> int:
    """Returns where the last lines begin."""
    end = os.fstat(fd).st_size
    if count == 0 or end == 0:
        return end
    position = end
    left = count + (os.pread(fd, 1, end - 1) == b"\n")  # an end of a line that has no line behind it
    while position > 0:
        start = max(position - _PIECE_BYTES, 0)
        piece = os.pread(fd, position - start, start)
        found = len(piece)
        while (found := piece.rfind(b"\n", 0, found)) >= 0:
            left -= 1
            if left == 0:
                return start + found + 1
        position = start
    return 0
