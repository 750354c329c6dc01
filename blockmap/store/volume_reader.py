"""Reads the bytes of a whole volume from the store, past any cache."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable

from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.extent import Extent
from blockmap.format.placement import Placement
from blockmap.format.tree import Root, find
from blockmap.store.repository import Repository

_CHUNKS_IN_MEMORY = 256
_LEAVES_IN_MEMORY = 64


def stored_reader(repository: Repository, root: Root) -> Callable[[int, int], bytes]:
    """Returns a function that reads (offset, length) in bytes of a volume from the store; for one thread."""
    spans: OrderedDict[int, tuple[list[Extent], dict[Digest, Placement | None]]] = OrderedDict()
    chunks: OrderedDict[Digest, bytes | memoryview] = OrderedDict()

    def extents_of(span: int) -> tuple[list[Extent], dict[Digest, Placement | None]]:
        if span not in spans:
            leaf = find(root, span, repository.node)
            spans[span] = (
                ([], {})
                if leaf is None
                else (leaf.extents(span * SPAN), dict(zip(leaf.chunks, leaf.placements, strict=True)))
            )
            if len(spans) > _LEAVES_IN_MEMORY:
                spans.popitem(last=False)
        return spans[span]

    def chunk(name: Digest, place: Placement | None) -> bytes | memoryview:
        if name not in chunks:
            assert place is not None
            chunks[name] = repository.chunk(name, place)
            if len(chunks) > _CHUNKS_IN_MEMORY:
                chunks.popitem(last=False)
        chunks.move_to_end(name)
        return chunks[name]

    def read(offset: int, length: int) -> bytes:
        out = bytearray(length)
        end = offset + length
        for span in range(offset // (SPAN * BLOCK), -(-end // (SPAN * BLOCK))):
            extents, places = extents_of(span)
            first = bisect_right(extents, offset // BLOCK, key=lambda extent: extent.start) - 1
            for extent in extents[max(first, 0) :]:
                start, stop = max(extent.start * BLOCK, offset), min(extent.end * BLOCK, end)
                if extent.start * BLOCK >= end:
                    break
                if start < stop and extent.chunk is not None:
                    at = start - extent.start * BLOCK + extent.first * BLOCK
                    data = chunk(extent.chunk, places[extent.chunk])
                    out[start - offset : stop - offset] = data[at : at + stop - start]
        return bytes(out)

    return read
