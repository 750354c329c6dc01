"""Makes bundles from the store: the blocks that starts read, and the nodes above them."""

import secrets
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from blockmap.format import BLOCK, bundle
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.extent import Extent
from blockmap.format.filemap import FileRun
from blockmap.format.node import Leaf
from blockmap.format.placement import Placement
from blockmap.format.reading_list import ReadItem
from blockmap.format.tree import Root
from blockmap.store.packs import Sealer, compress, raised
from blockmap.store.plan import Wanted, chunk_at
from blockmap.store.repository import Repository
from blockmap.store.walk import nodes

_BATCH_BYTES = 32 << 20
"""Bytes of chunks, after decompression, that are in memory besides the bundle."""

_FURTHER_SHARE = 0.02
"""Limit on the tree's other leaves, as a share of the bytes that starts read; with them, a miss takes one round trip."""


def build_bundle(
    repository: Repository,
    root: Root,
    read_items: Sequence[ReadItem],
    image_blocks: int,
    ported: bool = False,
    extras: Sequence[FileRun] = (),
    listed: Sequence[ReadItem] | None = None,
) -> tuple[list[bytes], int]:
    """Returns the parts of the bundle, and the length of its head in bytes. Raises Corrupt or StoreUnavailable.

    `image_blocks` is the number of blocks of data in the whole volume; `ported` says that `read_items` were learnt from
    another version; the blocks of `extras` follow them in the bundle, but are not listed. Where `listed` is given, the others of
    `read_items` are not listed either.
    """
    read = [(own.start, own.blocks) for own in read_items]
    spans = {
        span for start, length in (*read, *extras) for span in range(start // SPAN, (start + length - 1) // SPAN + 1)
    }
    frames: dict[Digest, bytes] = {}

    def keep(item: Wanted, frame: bytes) -> None:
        frames[item.name] = frame

    every = list(nodes(root, lambda refs: repository.packs.nodes(refs, keep)))
    leaves = {span: node for span, node in every if isinstance(node, Leaf) and span in spans}
    extents = [extent for span, leaf in sorted(leaves.items()) for extent in leaf.extents(span * SPAN)]
    places = {
        chunk: place
        for leaf in leaves.values()
        for chunk, place in zip(leaf.chunks, leaf.placements, strict=True)
        if place is not None
    }
    above = {node.digest: frames[node.digest] for span, node in every if not isinstance(node, Leaf) or span in spans}
    further = [each for each in frames.items() if each[0] not in above]
    if sum(len(frame) for _, frame in further) > _FURTHER_SHARE * BLOCK * sum(own.blocks for own in read_items):
        further = []
    first = _masks(read, extents)
    later = {chunk: mask & ~first.get(chunk, 0) for chunk, mask in _masks(extras, extents).items()}
    pieces = [*first.items(), *((chunk, mask) for chunk, mask in later.items() if mask)]
    chunks = _chunks(repository, pieces, places)
    salt, seal = secrets.token_bytes(16), Sealer().seal
    shown = read_items if listed is None else listed
    return bundle.encode(list(above.items()), chunks, shown, image_blocks, salt, seal, compress, further, ported)


def _masks(runs: Sequence[FileRun], extents: Sequence[Extent]) -> dict[Digest, int]:
    """Returns the chunks that hold the blocks of `runs`, in their order, each with a mask of these blocks."""
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
    """Yields names, masks and contents in the order of `masks`."""
    batch: list[tuple[Digest, int]] = []
    waiting = 0
    for number, (chunk, mask) in enumerate(masks):
        batch.append((chunk, mask))
        waiting += places[chunk].raw
        if waiting >= _BATCH_BYTES or number == len(masks) - 1:
            found = repository.packs.chunks([chunk_at(name, places[name]) for name, _ in batch])
            for name, own in batch:
                yield name, own, raised(found[name])
            batch, waiting = [], 0
