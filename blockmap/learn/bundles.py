"""Makes bundles: the blocks that starts read, and the nodes above them, out of what the store has."""

import secrets
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from blockmap.fetch.plan import chunk_at
from blockmap.format import BLOCK, bundle
from blockmap.format.bundle import Reading
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.extent import Extent
from blockmap.format.node import Leaf, Placement
from blockmap.format.tree import Root
from blockmap.learn.stored import fetch, nodes
from blockmap.store.repository import Repository, open_chunk

_BATCH_BYTES = 32 << 20
"""Of chunks, after decompression: what is in memory besides the bundle."""

_FURTHER_SHARE = 0.02
"""Of what starts read: so many bytes of the tree's other leaves come along, so that what is missed takes one round trip."""


def build(
    repository: Repository, root: Root, readings: Sequence[Reading], image_blocks: int, carried: bool = False
) -> tuple[list[bytes], int]:
    """The parts of the bundle of `readings`, and the bytes of its head; Corrupt, StoreUnavailable.

    `image_blocks` are the blocks of data of the whole volume; `carried` are readings of another.
    """
    spans = {span for own in readings for span in range(own.start // SPAN, (own.start + own.blocks - 1) // SPAN + 1)}
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
    chunks = _chunks(repository, _masks(readings, extents), places)
    return bundle.encode(list(stems), chunks, readings, image_blocks, secrets.token_bytes(16), further, carried)


def _masks(readings: Sequence[Reading], extents: Sequence[Extent]) -> dict[Digest, int]:
    """The chunks that hold the blocks of `readings`, in their order, and which of their blocks do."""
    starts = [extent.start for extent in extents]
    masks: dict[Digest, int] = {}
    for own in readings:
        end = own.start + own.blocks
        for extent in extents[max(bisect_right(starts, own.start) - 1, 0) : bisect_right(starts, end - 1)]:
            if extent.end > own.start and extent.chunk is not None:
                piece = extent.piece(own.start, end)
                mask = ((1 << piece.length) - 1) << piece.first
                masks[extent.chunk] = masks.get(extent.chunk, 0) | mask
    return masks


def _chunks(
    repository: Repository, masks: dict[Digest, int], places: dict[Digest, Placement]
) -> Iterator[tuple[Digest, int, bytes | memoryview]]:
    """Names, masks and contents, in the order of `masks`."""
    batch: list[Digest] = []
    waiting = 0
    for number, chunk in enumerate(masks):
        batch.append(chunk)
        waiting += places[chunk].raw
        if waiting >= _BATCH_BYTES or number == len(masks) - 1:
            stored = fetch(repository, [chunk_at(name, places[name]) for name in batch])
            for name in batch:
                yield name, masks[name], open_chunk(name, places[name], stored.pop(name))
            batch, waiting = [], 0
