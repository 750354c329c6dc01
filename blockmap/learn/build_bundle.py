"""Makes bundles: the blocks that starts read, and the nodes above them, out of what the store has."""

import secrets
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from blockmap.format import BLOCK, bundle
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.extent import Extent
from blockmap.format.filemap import FileRun
from blockmap.format.node import Leaf, Placement
from blockmap.format.reading_list import ReadItem
from blockmap.format.tree import Root
from blockmap.store.plan import chunk_at
from blockmap.store.repository import Repository, open_chunk
from blockmap.store.walk import fetch, nodes

_BATCH_BYTES = 32 << 20
"""Of chunks, after decompression: what is in memory besides the bundle."""

_FURTHER_SHARE = 0.02
"""Of what starts read: so many bytes of the tree's other leaves come along, so that what is missed takes one round trip."""


def build_bundle(
    repository: Repository,
    root: Root,
    readings: Sequence[ReadItem],
    image_blocks: int,
    carried: bool = False,
    besides: Sequence[FileRun] = (),
) -> tuple[list[bytes], int]:
    """The parts of the bundle of `readings`, and the bytes of its head; Corrupt, StoreUnavailable.

    `image_blocks` are the blocks of data of the whole volume; `carried` are readings of another; `besides` comes after them.
    """
    read = [(own.start, own.blocks) for own in readings]
    spans = {
        span for start, length in (*read, *besides) for span in range(start // SPAN, (start + length - 1) // SPAN + 1)
    }
    every = nodes(repository, root)
    above = [own for own in every if not isinstance(own.node, Leaf) or own.span in spans]
    leaves = {own.span: own.node for own in above if isinstance(own.node, Leaf)}
    extents = [extent for span, leaf in sorted(leaves.items()) for extent in leaf.extents(span * SPAN)]
    places = {
        chunk: place
        for leaf in leaves.values()
        for chunk, place in zip(leaf.chunks, leaf.placements, strict=True)
        if place is not None
    }
    stems = dict.fromkeys((own.name, own.frame) for own in above)
    further = [each for each in dict.fromkeys((own.name, own.frame) for own in every) if each not in stems]
    if sum(len(frame) for _, frame in further) > _FURTHER_SHARE * BLOCK * sum(own.blocks for own in readings):
        further = []
    first = _masks(read, extents)
    later = {chunk: mask & ~first.get(chunk, 0) for chunk, mask in _masks(besides, extents).items()}
    pieces = [*first.items(), *((chunk, mask) for chunk, mask in later.items() if mask)]
    chunks = _chunks(repository, pieces, places)
    return bundle.encode(list(stems), chunks, readings, image_blocks, secrets.token_bytes(16), further, carried)


def _masks(runs: Sequence[FileRun], extents: Sequence[Extent]) -> dict[Digest, int]:
    """The chunks that hold the blocks of `runs`, in their order, and which of their blocks do."""
    starts = [extent.start for extent in extents]
    masks: dict[Digest, int] = {}
    for start, length in runs:
        end = start + length
        for extent in extents[max(bisect_right(starts, start) - 1, 0) : bisect_right(starts, end - 1)]:
            if extent.end > start and extent.chunk is not None:
                piece = extent.piece(start, end)
                mask = ((1 << piece.length) - 1) << piece.first
                masks[extent.chunk] = masks.get(extent.chunk, 0) | mask
    return masks


def _chunks(
    repository: Repository, masks: Sequence[tuple[Digest, int]], places: dict[Digest, Placement]
) -> Iterator[tuple[Digest, int, bytes | memoryview]]:
    """Names, masks and contents, in the order of `masks`."""
    batch: list[tuple[Digest, int]] = []
    waiting = 0
    for number, (chunk, mask) in enumerate(masks):
        batch.append((chunk, mask))
        waiting += places[chunk].raw
        if waiting >= _BATCH_BYTES or number == len(masks) - 1:
            stored = fetch(repository, [chunk_at(name, places[name]) for name in dict(batch)])
            for name, own in batch:
                yield name, own, open_chunk(name, places[name], stored[name])
            batch, waiting = [], 0
