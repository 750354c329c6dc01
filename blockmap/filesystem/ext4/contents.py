"""Writes the contents of files to their blocks as they come."""

from collections.abc import Iterator

from blockmap.errors import ImageError
from blockmap.filesystem.ext4.geometry import Runs
from blockmap.filesystem.sink import BlockSink

BLOCK = 4096


def write_contents(sink: BlockSink, runs: Runs, size: int, contents: Iterator[bytes], threshold: int) -> None:
    """Writes a file's contents to `runs`; the last block is filled up with zeros.

    Files of at least `threshold` blocks are cut at their edges, unless it is 0. Raises ImageError if the size is another.
    """
    edges = threshold and sum(length for _, length in runs) >= threshold
    if edges:
        sink.cut()
    waiting = iter(runs)
    block, room = next(waiting)
    rest = b""
    left = size
    for data in contents:
        left -= len(data)
        if rest:
            data = rest + data
        if not left:
            data = bytes(data) + bytes(-len(data) % BLOCK)
        view = memoryview(data)
        while len(view) >= BLOCK:
            count = min(len(view) // BLOCK, room)
            sink.write(block, view[: count * BLOCK])
            view = view[count * BLOCK :]
            block, room = block + count, room - count
            if not room:
                block, room = next(waiting, (0, 0))
                if not room:
                    break
        rest = bytes(view)
    if left or rest:
        raise ImageError(f"a file of {size} bytes came with {size - left} bytes of content")
    if edges:
        sink.cut()
