"""Adds up and verifies a whole version in the store, past any cache."""

from collections.abc import Iterator
from dataclasses import dataclass

from blockmap.errors import BlockmapError
from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.node import Leaf
from blockmap.format.tree import Root
from blockmap.format.version import Version
from blockmap.store.packs import Packs, raised
from blockmap.store.plan import chunk_at
from blockmap.store.repository import Repository
from blockmap.store.walk import Spot, leaves, visit


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tree holds."""

    data_bytes: int
    """Bytes of the volume, holes left out."""
    chunks: int
    chunk_bytes: int
    """Bytes of distinct chunks, before compression."""
    stored_bytes: int
    packs: int


def usage(repository: Repository, root: Root) -> Usage:
    """Adds up a tree; reads its nodes."""
    data = raw = stored = 0
    seen: set[Digest] = set()
    packs: set[Digest] = set()
    for _, leaf in leaves(root, repository.packs.nodes):
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

    def unseen(level: int, row: list[Spot]) -> list[Spot]:
        new = {spot.ref[0]: spot for spot in row if spot.ref[0] not in seen}
        seen.update(new)
        return list(new.values())

    for root in (version.root, version.extra):
        for _, found in visit(root, repository.packs.nodes, unseen):
            if isinstance(found, BlockmapError):
                yield str(found)
            elif isinstance(found, Leaf):
                yield from _check_leaf(repository.packs, found, seen)


def _check_leaf(packs: Packs, leaf: Leaf, seen: set[Digest]) -> Iterator[str]:
    places = zip(leaf.chunks, leaf.placements, strict=True)
    new = [chunk_at(chunk, place) for chunk, place in places if chunk not in seen and place is not None]
    seen.update(leaf.chunks)
    stored = packs.fetch(new)
    for item in new:
        try:
            packs.open_chunk(item.name, item.place, raised(stored[item.key]))
        except BlockmapError as error:
            yield str(error)
