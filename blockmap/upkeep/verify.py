"""Looks at a whole version in the store, past any cache: how much there is, whether all of it is right."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from blockmap.errors import BlockmapError
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.extent import Extent
from blockmap.format.node import Inner, Leaf, Placement
from blockmap.format.tree import Root, find, leaves
from blockmap.format.version import Version
from blockmap.store.repository import Repository

_CHUNKS_IN_MEMORY = 256
_LEAVES_IN_MEMORY = 64


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tree holds."""

    data_bytes: int
    """Of the volume, holes left out."""
    chunks: int
    chunk_bytes: int
    """Of distinct chunks, before compression."""
    stored_bytes: int
    packs: int


def usage(repository: Repository, root: Root) -> Usage:
    """Adds up a tree; reads its nodes."""
    data = raw = stored = 0
    seen: set[Digest] = set()
    packs: set[Digest] = set()
    for _, leaf in leaves(root, repository.node):
        data += int(leaf.lengths.sum())
        for chunk, place in zip(leaf.chunks, leaf.placements, strict=True):
            if chunk not in seen and place is not None:
                seen.add(chunk)
                packs.add(place.pack)
                raw += place.raw
                stored += place.stored
    return Usage(data * BLOCK, len(seen), raw, stored, len(packs))


def check_version(repository: Repository, version: Version) -> Iterator[str]:
    """Reads every node and chunk of a version, and says what is wrong with it; goes on after damage."""
    seen: set[Digest] = set()
    for root in (version.root, version.extra):
        waiting: list[tuple[Digest, Placement | None]] = (
            [] if root.digest == ABSENT else [(root.digest, root.placement)]
        )
        while waiting:
            name, place = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            try:
                node = repository.node(name, place)
            except BlockmapError as error:
                yield str(error)
                continue
            if isinstance(node, Inner):
                waiting.extend(zip(node.children, node.placements, strict=True))
            else:
                yield from _check_leaf(repository, node, seen)


def stored_reader(repository: Repository, root: Root) -> Callable[[int, int], bytes]:
    """Reads (offset, length) in bytes of a volume from the store; for one thread."""
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


def _check_leaf(repository: Repository, leaf: Leaf, seen: set[Digest]) -> Iterator[str]:
    for chunk, place in zip(leaf.chunks, leaf.placements, strict=True):
        if chunk in seen:
            continue
        seen.add(chunk)
        try:
            assert place is not None
            repository.chunk(chunk, place)
        except BlockmapError as error:
            yield str(error)
