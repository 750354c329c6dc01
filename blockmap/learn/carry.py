"""A profile on another version than its own: pure.

Blocks of a file are found by its path and the place in it, or else, as blocks of no file, by the digest of their chunk. What is
left of the file system's own blocks is taken to be where it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from blockmap.format import BLOCK
from blockmap.format.bundle import Reading
from blockmap.format.digest import Digest
from blockmap.format.filemap import File
from blockmap.format.profile import Item
from blockmap.learn.layout import Layout

Lookup = Callable[[bytes], Sequence[int]]
"""The blocks of the volume that finding a path reads, those that an earlier call gave left out."""


def carry(
    items: Sequence[Item],
    root: Digest,
    layout: Layout,
    lookup: Lookup | None = None,
    sizes: Mapping[bytes, int] | None = None,
) -> list[Item]:
    """The items of a profile of the volume `root`, in the same order, where the volume of `layout` has them.

    With `lookup`, what finding each file reads comes before its contents. With `sizes`, in bytes, of the files of `root`,
    what was read up to the end of a file is read up to its new end where it grew.
    """
    if layout.root == root:
        return list(items)
    starts, lengths, owners = [], [], []
    for number, item in enumerate(items):
        for start, length in _places(item, layout, lookup, sizes or {}):
            starts.append(start)
            lengths.append(length)
            owners.append(number)
    if not starts:
        return []
    blocks = np.concatenate([np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])
    owner = np.repeat(owners, lengths)
    first = np.sort(np.unique(blocks, return_index=True)[1])
    times = np.fromiter((item.time_ms for item in items), np.int64)
    touched = np.fromiter((item.touched for item in items), np.int64)
    return layout.items(blocks[first], times[owner[first]], touched[owner[first]])


def readings(items: Sequence[Item]) -> list[Reading]:
    """What a bundle lists."""
    return [Reading(item.start, item.blocks, item.path, item.at) for item in items]


def _places(item: Item, layout: Layout, lookup: Lookup | None, sizes: Mapping[bytes, int]) -> Iterator[tuple[int, int]]:
    """Starts and lengths, in blocks of the volume."""
    file = layout.by_path.get(item.path) if item.path is not None else None
    if file is not None:
        if lookup is not None:
            yield from ((block, 1) for block in lookup(file.path))
        yield from _in_file(item, file, sizes.get(file.path))
        return
    found = False
    end = item.first + item.blocks
    for extent in layout.by_chunk.get(item.chunk, ()):
        low, high = max(item.first, extent.first), min(end, extent.first + extent.length)
        if low < high:
            yield extent.start + low - extent.first, high - low
            found = True
            if (low, high) == (item.first, end):
                return
    if not found and item.path is None:
        blocks = np.arange(item.start, item.start + item.blocks)
        yield from ((block, 1) for block in blocks[layout.run_of(blocks) < 0].tolist())


def _in_file(item: Item, file: File, old_size: int | None) -> Iterator[tuple[int, int]]:
    end, size = item.at + item.blocks, -(-file.size // BLOCK)
    if old_size is not None and end == -(-old_size // BLOCK):
        end += item.blocks  # of a file that became quite another, not all is wanted
    end = min(end, size)
    at = 0
    for start, length in file.runs:
        low, high = max(item.at, at), min(end, at + length)
        if low < high:
            yield start + low - at, high - low
        at += length
