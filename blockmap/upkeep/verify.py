"""Adds up and verifies a whole version in the store, past any cache."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from blockmap.errors import BlockmapError, Corrupt, NotFound, StoreError
from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.node import Leaf, Node
from blockmap.format.tree import Root
from blockmap.format.version import Version
from blockmap.store.base import Writer
from blockmap.store.concurrent import each
from blockmap.store.pack_logs import record_damage
from blockmap.store.packs import NodeRef, Packs
from blockmap.store.plan import Wanted, chunk_at, node_at
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


@dataclass(frozen=True, slots=True)
class Fault:
    """Something of a version that cannot be read, neither where it should be nor where it was stored again."""

    message: str
    name: Digest | None = None
    packs: tuple[Digest, ...] = ()
    """The packs that should have the chunk or node `name` and have it not; empty where the store did not say so."""


class _Unreadable(BlockmapError):
    """Stands in place of a node."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def check_version(repository: Repository, version: Version) -> Iterator[Fault]:
    """Reads every node and chunk of a version, and yields what is wrong with it; goes on after damage."""
    packs = repository.packs
    seen: set[Digest] = set()

    def unseen(level: int, row: list[Spot]) -> list[Spot]:
        new = {spot.ref[0]: spot for spot in row if spot.ref[0] not in seen}
        seen.update(new)
        return list(new.values())

    def load(refs: Sequence[NodeRef]) -> list[Node | BlockmapError]:
        return [
            _Unreadable(_fault(packs, found, None if place is None else node_at(name, place)))
            if isinstance(found, BlockmapError)
            else found
            for (name, place), found in zip(refs, packs.nodes(refs), strict=True)
        ]

    for root in (version.root, version.extra):
        for _, found in visit(root, load, unseen):
            if isinstance(found, _Unreadable):
                yield found.fault
            elif isinstance(found, BlockmapError):
                yield Fault(str(found))
            elif isinstance(found, Leaf):
                yield from _check_leaf(packs, found, seen)


def record_faults(store: Writer, faults: Iterable[Fault]) -> None:
    """Records in the store which parts of packs are damaged or lost, so that nobody relies on them."""
    damaged: dict[Digest, set[Digest]] = {}
    for fault in faults:
        for pack in fault.packs:
            assert fault.name is not None
            damaged.setdefault(pack, set()).add(fault.name)
    each(lambda found: record_damage(store, *found), damaged.items())


def _check_leaf(packs: Packs, leaf: Leaf, seen: set[Digest]) -> Iterator[Fault]:
    places = zip(leaf.chunks, leaf.placements, strict=True)
    new = [chunk_at(chunk, place) for chunk, place in places if chunk not in seen and place is not None]
    seen.update(leaf.chunks)
    read = packs.chunks(new)
    for item in new:
        found = read[item.key]
        if isinstance(found, Corrupt):
            found = packs.chunks([item])[item.key]  # what was damaged on its way is no damage of the store
        if isinstance(found, BlockmapError):
            yield _fault(packs, found, item)


def _fault(packs: Packs, error: BlockmapError, item: Wanted | None) -> Fault:
    """Returns what is wrong with something that cannot be read, neither in its place nor where it was stored again."""
    if item is None or not isinstance(error, (Corrupt, NotFound)):
        return Fault(str(error))
    lost = [item]
    with suppress(StoreError):
        packs.elsewhere(item, lost.append)
    return Fault(str(error), item.name, tuple(each.place.pack for each in lost))
