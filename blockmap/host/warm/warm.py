"""Reads what a start will need into the kernel's page cache, so that no fault of the program waits for NBD.

ext4 reads its metadata through the page cache of the block device, so reading that device warms it; a file's data has a
page cache of its own, which only reads through the mounted file system fill.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from blockmap.host.image_file import open_beneath

BLOCK_BYTES = 4096
PIECE_BYTES = 128 << 10
"""Bytes read at once, which nbdfuse takes as one request: whoever waits for a block of it waits for no more than that."""
_WINDOW_BLOCKS = 1024
_MOST_BLOCKS = 1 << 40
_MOST_PIECES = 1 << 18
"""Pieces that are read at most, which take 40 MB of memory: a list that would have more is somebody's mistake or attack."""
_THREADS = 8
"""Threads that read: nbdfuse answers ten requests at once and FUSE takes twelve, so that the program's own still get through."""


@dataclass(frozen=True, slots=True)
class WarmRange:
    """A range in bytes, of a file of the image, or of the device where there is no path."""

    path: str | None
    offset: int
    length: int


def plan(readings: Iterable[Sequence[object]], soon_blocks: int = 0) -> list[WarmRange]:
    """Returns what to read, about in the order of `readings`: [start block, blocks, path or None, block of the file].

    Within a window, neighbours are joined, up to PIECE_BYTES: a program touches the pages of a file in no order, and each
    request costs as much as some ten pages. Windows grow, as the program needs the later ones later, but not beyond the
    `soon_blocks` that come to the server within a moment. Items that make no sense are left out, and what is beyond
    _MOST_PIECES: the list comes from elsewhere, and is advice.
    """
    return list(islice(_pieces(readings, soon_blocks), _MOST_PIECES))


def _pieces(readings: Iterable[Sequence[object]], soon_blocks: int) -> Iterator[WarmRange]:
    window: dict[str | None, list[tuple[int, int]]] = {}
    blocks, most = 0, _WINDOW_BLOCKS
    for path, at, end in _ranges(readings):
        window.setdefault(path, []).append((at, end))
        blocks += end - at
        if blocks >= most:
            yield from _joined(window)
            window, blocks, most = {}, 0, max(_WINDOW_BLOCKS, min(2 * most, soon_blocks))
    yield from _joined(window)


def warm(pieces: Sequence[WarmRange], device: int, root: Callable[[], int | None]) -> None:
    """Reads all pieces, in order, several at once, and returns when they are in memory.

    `device` is the open block device; `root` waits until the image is mounted, and gives its open root directory, or
    None where it will not be. A file that is not as expected is passed over; where a read fails, the rest is not read: it
    would only wait for the same store.
    """
    work = _Work(pieces, device, root)
    threads = [threading.Thread(target=work.run, daemon=True) for _ in range(min(_THREADS, len(pieces)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _Work:
    """The pieces that are still to be read, shared by the threads."""

    def __init__(self, pieces: Sequence[WarmRange], device: int, root: Callable[[], int | None]) -> None:
        self._lock = threading.Lock()  # guards _left
        self._left: Iterator[WarmRange] = iter(pieces)
        self._device = device
        self._root = root

    def run(self) -> None:
        buffer = bytearray(PIECE_BYTES)
        while piece := self._next():
            try:
                self._read(piece, memoryview(buffer)[: piece.length])
            except OSError:
                with self._lock:
                    self._left = iter(())

    def _next(self) -> WarmRange | None:
        with self._lock:
            return next(self._left, None)

    def _read(self, piece: WarmRange, buffer: memoryview) -> None:
        if piece.path is None:
            _bring(self._device, piece, buffer)
            return
        root = self._root()
        if root is None:
            return
        try:
            fd = open_beneath(root, piece.path)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) == errno.EIO:
                raise
            return
        try:
            _bring(fd, piece, buffer)
        finally:
            os.close(fd)


def _bring(fd: int, piece: WarmRange, buffer: memoryview) -> None:
    # The advice alone does not wait, and a read alone asks for one page after the other where the read-ahead is 0.
    os.posix_fadvise(fd, piece.offset, piece.length, os.POSIX_FADV_WILLNEED)
    os.preadv(fd, [buffer], piece.offset)


def _ranges(readings: Iterable[Sequence[object]]) -> Iterator[tuple[str | None, int, int]]:
    """Yields path, and half-open range of blocks of the file or device."""
    for reading in readings:
        if len(reading) != 4:
            continue
        start, blocks, path, file_block = reading
        at = start if path is None else file_block
        if type(at) is not int or type(blocks) is not int or not isinstance(path, str | None):
            continue
        if at >= 0 and blocks > 0 and at + blocks <= _MOST_BLOCKS:
            yield path, at, at + blocks


def _joined(window: dict[str | None, list[tuple[int, int]]]) -> Iterator[WarmRange]:
    """Yields the pieces of a window; files in the order of their first touch."""
    for path, ranges in window.items():
        ranges.sort()
        begin, end = ranges[0]
        for at, until in ranges[1:]:
            if at > end:
                yield from _cut(path, begin, end)
                begin = at
            end = max(end, until)
        yield from _cut(path, begin, end)


def _cut(path: str | None, begin: int, end: int) -> Iterator[WarmRange]:
    for at in range(begin * BLOCK_BYTES, end * BLOCK_BYTES, PIECE_BYTES):
        yield WarmRange(path, at, min(PIECE_BYTES, end * BLOCK_BYTES - at))
