"""A profile on another version than its own: pure.

Blocks of a file are found by its path and the place in it, or else, as blocks of no file, by the digest of their chunk. What is
left of the file system's own blocks is taken to be where it was. In a file that changed, what was read may be as far from the
start as it was, or from the end. Files that are new are taken in where starts read most others of their kind.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.filemap import File
from blockmap.format.profile import ProfileItem
from blockmap.format.reading_list import ReadItem
from blockmap.learn.block_index import BlockIndex
from blockmap.learn.new_files import new_files

_AROUND_BLOCKS = 1
"""On both sides of what was read of a file that changed: a rebuilt program has its data nearly where it was."""

Lookup = Callable[[bytes], Sequence[int]]
"""The blocks of the volume that finding a path reads, those that an earlier call gave left out."""


def port(
    items: Sequence[ProfileItem],
    root: Digest,
    layout: BlockIndex,
    lookup: Lookup | None = None,
    sizes: Mapping[bytes, int] | None = None,
) -> list[ProfileItem]:
    """The items of a profile of the volume `root`, in the same order, where the volume of `layout` has them.

    With `lookup`, what finding each file reads comes before its contents. `sizes`, in bytes, are those of all files of
    `root`: without them nothing is known of what became longer, or is new.
    """
    if layout.root == root:
        return list(items)
    new = new_files(items, sizes, layout.files) if sizes else {}
    starts, lengths, owners = [], [], []
    for number, item in enumerate(items):
        places = [*_places(item, layout, lookup, sizes or {})]
        for file in new.get(number, ()):
            places += [*lookup_blocks(file, lookup), *file.runs]
        for start, length in places:
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


def read_items(items: Sequence[ProfileItem]) -> list[ReadItem]:
    """What a bundle lists."""
    return [ReadItem(item.start, item.blocks, item.path, item.at) for item in items]


def _places(
    item: ProfileItem, layout: BlockIndex, lookup: Lookup | None, sizes: Mapping[bytes, int]
) -> Iterator[tuple[int, int]]:
    """Starts and lengths, in blocks of the volume."""
    file = layout.by_path.get(item.path) if item.path is not None else None
    if file is not None:
        yield from lookup_blocks(file, lookup)
        at, end = item.at, item.at + item.blocks
        if item.chunk in layout.by_chunk or file.path not in sizes:
            yield from _in_file(file, at, end)
            return
        old = _blocks(sizes[file.path])
        longer = _blocks(file.size) - old
        # Of a file that became quite another, not all is wanted.
        further = min(longer, item.blocks) if longer > 0 and end == old else _AROUND_BLOCKS
        yield from _in_file(file, at - _AROUND_BLOCKS, end + further)
        yield from _in_file(file, at + longer - _AROUND_BLOCKS, end + longer + _AROUND_BLOCKS)
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


def lookup_blocks(file: File, lookup: Lookup | None) -> Iterator[tuple[int, int]]:
    """The blocks, as starts and lengths, that finding a file reads; none without `lookup`."""
    if lookup is not None:
        yield from ((block, 1) for block in lookup(file.path))


def _in_file(file: File, first: int, end: int) -> Iterator[tuple[int, int]]:
    """What there is of a half-open range of a file's blocks."""
    first, end = max(first, 0), min(end, _blocks(file.size))
    at = 0
    for start, length in file.runs:
        low, high = max(first, at), min(end, at + length)
        if low < high:
            yield start + low - at, high - low
        at += length


def _blocks(size: int) -> int:
    return -(-size // BLOCK)
