"""Turns what was written over a version, ranges of bytes, into chunks and into the edits of its tree."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.extent import Extent, zeros
from blockmap.format.node import Node
from blockmap.format.tree import Root
from blockmap.publish.chunks import ChunkWriter
from blockmap.store.packs import raised
from blockmap.store.walk import LoadNodes, Select, Spot, above, visit

_PIECE_BLOCKS = 256
"""Blocks that are read at once: 1 MiB."""


class DirtyRange(NamedTuple):
    """Bytes [start, end) of a volume that were written."""

    start: int
    end: int
    is_zero: bool
    """True if they were made zeros."""


ReadBytes = Callable[[memoryview, int], object]
"""Fills a buffer with the bytes at an offset: what was written, and where a block was written in part, what is below."""


class BlockRuns(NamedTuple):
    """Blocks that were written: runs [start, end), ascending and disjoint."""

    data: list[tuple[int, int]]
    zeros: list[tuple[int, int]]
    """Whole blocks that were made zeros; nothing of them is read."""


def block_runs(dirty: Iterable[DirtyRange]) -> BlockRuns:
    """Returns the blocks that ascending, disjoint ranges touch; one that is made zeros in part counts as data."""
    data: list[tuple[int, int]] = []
    empty: list[tuple[int, int]] = []

    def add(runs: list[tuple[int, int]], start: int, end: int) -> None:
        if runs and start <= runs[-1][1]:
            start, end = runs[-1][0], max(end, runs.pop()[1])
        runs.append((start, end))

    for start, end, is_zero in dirty:
        first, last = start // BLOCK, -(-end // BLOCK)
        if not is_zero:
            add(data, first, last)
            continue
        whole_first, whole_last = -(-start // BLOCK), end // BLOCK
        if whole_first >= whole_last:  # no whole block, but parts of one or two
            add(data, first, last)
            continue
        if first < whole_first:
            add(data, first, whole_first)
        add(empty, whole_first, whole_last)
        if whole_last < last:
            add(data, whole_last, last)
    return BlockRuns(data, empty)


def write_runs(chunks: ChunkWriter, runs: BlockRuns, read: ReadBytes) -> None:
    """Gives the blocks with data to a chunk writer, each run cut at both ends."""
    for start, end in runs.data:
        chunks.cut()
        for block in range(start, end, _PIECE_BLOCKS):
            piece = memoryview(bytearray((min(block + _PIECE_BLOCKS, end) - block) * BLOCK))
            read(piece, block * BLOCK)
            chunks.write(block, piece)


def edits(chunks: ChunkWriter, runs: BlockRuns) -> list[Extent]:
    """Returns the edits, in order, once all chunks are known: blocks of no chunk are zeros."""
    made = (extent for _, own in chunks.extents.spans(chunks.table) for extent in own)
    found: list[Extent] = []
    extent = next(made, None)
    for start, end in sorted([*runs.data, *runs.zeros]):
        at = start
        while extent is not None and extent.start < end:
            if at < extent.start:
                found.append(zeros(at, extent.start))
            found.append(extent)
            at = extent.end
            extent = next(made, None)
        if at < end:
            found.append(zeros(at, end))
    return found


def nodes_to_rewrite(runs: BlockRuns) -> Select:
    """Returns what chooses the nodes of a tree on the way to blocks that change; a leaf all of which changes is none."""
    blocks: dict[int, int] = {}
    for start, end in (*runs.data, *runs.zeros):
        for span in range(start // SPAN, (end - 1) // SPAN + 1):
            inside = min(end, (span + 1) * SPAN) - max(start, span * SPAN)
            blocks[span] = blocks.get(span, 0) + inside

    leads = above(blocks)

    def select(level: int, row: list[Spot]) -> list[Spot]:
        chosen = leads(level, row)
        return chosen if level else [spot for spot in chosen if blocks[spot.span] < SPAN]

    return select


def nodes_above(root: Root, runs: BlockRuns, load: LoadNodes) -> dict[Digest, Node]:
    """Reads the nodes of a tree that a rewrite of these blocks needs, each level at once."""
    return {node.digest: node for _, each in visit(root, load, nodes_to_rewrite(runs)) for node in [raised(each)]}
