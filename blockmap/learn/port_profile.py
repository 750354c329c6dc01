"""Ports a profile to another version than its own. It is pure.

Blocks of a file are found by its path and their place in it; other blocks, and those of missing files, by the digest of their
chunk. Blocks of the file system that are not found are taken to be where they were. In a changed file, blocks are looked for
at the same distance from its beginning and from its end. New files are taken in if starts read others of their kind.
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
"""Blocks added on both sides of those read of a changed file: a rebuilt program has its data nearly where it was."""

PathLookup = Callable[[bytes], Sequence[int]]
"""Returns the blocks of the volume that finding a path reads, without those of earlier calls."""


def port(
    items: Sequence[ProfileItem],
    root: Digest,
    index: BlockIndex,
    lookup: PathLookup | None = None,
    sizes: Mapping[bytes, int] | None = None,
) -> list[ProfileItem]:
    """Returns the items of a profile of the volume `root`, ported to the volume of `index`, in the same order.

    With `lookup`, the blocks that finding a file reads come before its contents. `sizes` are those of all files of `root`
    in bytes; without them, files that grew and new files cannot be told from others.
    """
    if index.root == root:
        return list(items)
    new = new_files(items, sizes, index.files) if sizes else {}
    starts, lengths, owners = [], [], []
    for number, item in enumerate(items):
        places = [*_places(item, index, lookup, sizes or {})]
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
    return index.items(blocks[first], times[owner[first]], touched[owner[first]])


def read_items(items: Sequence[ProfileItem]) -> list[ReadItem]:
    """Converts items to those of a reading list."""
    return [ReadItem(item.start, item.blocks, item.path, item.at) for item in items]


def _places(
    item: ProfileItem, index: BlockIndex, lookup: PathLookup | None, sizes: Mapping[bytes, int]
) -> Iterator[tuple[int, int]]:
    """Yields the places of an item in the volume: start and length in blocks."""
    file = index.by_path.get(item.path) if item.path is not None else None
    if file is not None:
        yield from lookup_blocks(file, lookup)
        at, end = item.at, item.at + item.blocks
        if item.chunk in index.by_chunk or file.path not in sizes:
            yield from _in_file(file, at, end)
            return
        old = _blocks(sizes[file.path])
        longer = _blocks(file.size) - old
        # A file that was rewritten altogether is not wanted whole.
        further = min(longer, item.blocks) if longer > 0 and end == old else _AROUND_BLOCKS
        yield from _in_file(file, at - _AROUND_BLOCKS, end + further)
        yield from _in_file(file, at + longer - _AROUND_BLOCKS, end + longer + _AROUND_BLOCKS)
        return
    found = False
    end = item.first + item.blocks
    for extent in index.by_chunk.get(item.chunk, ()):
        low, high = max(item.first, extent.first), min(end, extent.first + extent.length)
        if low < high:
            yield extent.start + low - extent.first, high - low
            found = True
            if (low, high) == (item.first, end):
                return
    if not found and item.path is None:
        blocks = np.arange(item.start, item.start + item.blocks)
        yield from ((block, 1) for block in blocks[index.run_of(blocks) < 0].tolist())


def lookup_blocks(file: File, lookup: PathLookup | None) -> Iterator[tuple[int, int]]:
    """Yields the blocks that finding a file reads, as starts and lengths; none without `lookup`."""
    if lookup is not None:
        yield from ((block, 1) for block in lookup(file.path))


def _in_file(file: File, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields the places of blocks [first, end) of a file, as far as it has them."""
    first, end = max(first, 0), min(end, _blocks(file.size))
    at = 0
    for start, length in file.runs:
        low, high = max(first, at), min(end, at + length)
        if low < high:
            yield start + low - at, high - low
        at += length


def _blocks(size: int) -> int:
    return -(-size // BLOCK)
