"""Walks trees, each stored form of a node once, and notes which parts of packs they refer to.

Collecting and checking begin with this walk; what they do with the parts of packs that nothing refers to is their own.
"""

from collections.abc import Iterable, Iterator, KeysView, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blockmap.errors import BlockmapError, Corrupt, NotFound, StoreError
from blockmap.format.digest import Digest
from blockmap.format.node import Leaf, Node
from blockmap.format.placement import Placement
from blockmap.format.tree import Root
from blockmap.store.packs import NodeRef, Packs
from blockmap.store.plan import Wanted, node_at
from blockmap.store.walk import Spot, visit

_REFERENCE = np.dtype([("offset", "<u4"), ("stored", "<u4"), ("prefix", "<u8")])
_SPARE = 256
"""References to one pack that are added before those that are the same are thrown together: a pack has some 400 chunks."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something of a version that cannot be read, neither where it should be nor where it was stored again."""

    message: str
    name: Digest | None = None
    packs: tuple[Digest, ...] = ()
    """The packs that should have the chunk or node `name` and have it not; empty where the store did not say so."""


def fault_of(packs: Packs, error: BlockmapError, item: Wanted | None) -> Fault:
    """Returns what is wrong with something that cannot be read, neither in its place nor where it was stored again.

    Raises a StoreError, which says nothing of what is stored.
    """
    if isinstance(error, StoreError):
        raise error
    if item is None or not isinstance(error, (Corrupt, NotFound)):
        return Fault(str(error))
    lost = [item]
    packs.elsewhere(item, lost.append)
    return Fault(str(error), item.name, tuple(dict.fromkeys(each.place.pack for each in lost)))


def reference(name: Digest, place: Placement) -> bytes:
    """Returns 16 bytes that stand for a chunk or node at a place of its pack: where it is, how long, how its name begins."""
    return place.offset.to_bytes(4, "little") + place.stored.to_bytes(4, "little") + name[:8]


class PackUse:
    """Holds what trees refer to, by pack, in 16 bytes for each chunk or node; twice that at most while it grows."""

    def __init__(self) -> None:
        self._found: dict[Digest, bytearray] = {}
        self._distinct: dict[Digest, int] = {}
        """How many references to a pack were distinct when that was last looked at."""
        self.node_packs: set[Digest] = set()
        """Packs of nodes; all others are packs of chunks."""

    @property
    def packs(self) -> KeysView[Digest]:
        return self._found.keys()

    @property
    def chunk_packs(self) -> list[Digest]:
        return [pack for pack in self._found if pack not in self.node_packs]

    def add(self, name: Digest, place: Placement, is_node: bool = False) -> None:
        if is_node:
            self.node_packs.add(place.pack)
        found = self._found.get(place.pack)
        if found is None:
            found = self._found[place.pack] = bytearray()
        found += reference(name, place)
        if len(found) > _REFERENCE.itemsize * (2 * self._distinct.get(place.pack, 0) + _SPARE):
            self._distill(place.pack)

    def references(self, pack: Digest) -> set[bytes]:
        """Returns what is referred to of a pack, each as `reference` has it."""
        data = bytes(self._found.get(pack, b""))
        size = _REFERENCE.itemsize
        return {data[at : at + size] for at in range(0, len(data), size)}

    def prefixes(self, pack: Digest) -> set[bytes]:
        """Returns how the names begin, with 8 bytes, of what is referred to of a pack."""
        data = bytes(self._found.get(pack, b""))
        return {data[at + 8 : at + 16] for at in range(0, len(data), _REFERENCE.itemsize)}

    def count(self, pack: Digest) -> int:
        return len(self._distill(pack))

    def stored_bytes(self, pack: Digest) -> int:
        """Returns the bytes of a pack that are referred to."""
        return int(self._distill(pack)["stored"].sum(dtype=np.int64))

    def end(self, pack: Digest) -> int:
        """Returns the least length that a pack must have, in bytes."""
        found = self._distill(pack)
        return int((found["offset"].astype(np.int64) + found["stored"]).max(initial=0))

    def _distill(self, pack: Digest) -> npt.NDArray[np.void]:
        found = np.unique(np.frombuffer(bytes(self._found.get(pack, b"")), _REFERENCE))
        if pack in self._found:
            self._found[pack] = bytearray(found.tobytes())
            self._distinct[pack] = len(found)
        return found


class _Unreadable(BlockmapError):
    """Stands in place of a node."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class TreeWalk:
    """Walks trees one after another, and leaves out what it has been through."""

    def __init__(self, packs: Packs) -> None:
        self._packs = packs
        self._seen: set[NodeRef] = set()
        self.use = PackUse()
        """What was referred to: chunks, and the nodes themselves."""

    def walk(self, roots: Iterable[Root]) -> Iterator[Leaf | Fault]:
        """Yields the leaves of trees, and what is wrong where a node cannot be read, whose children are left out."""
        for root in roots:
            for _, found in visit(root, self._load, self._unseen):
                if isinstance(found, Leaf):
                    for name, place in zip(found.chunks, found.placements, strict=True):
                        if place is not None:
                            self.use.add(name, place)
                    yield found
                elif isinstance(found, _Unreadable):
                    yield found.fault
                elif isinstance(found, BlockmapError):
                    yield Fault(str(found))

    def _unseen(self, level: int, row: list[Spot]) -> list[Spot]:
        new = {spot.ref: spot for spot in row if spot.ref not in self._seen}
        self._seen.update(new)
        for name, place in new:
            if place is not None:
                self.use.add(name, place, is_node=True)
        return list(new.values())

    def _load(self, refs: Sequence[NodeRef]) -> list[Node | BlockmapError]:
        return [
            _Unreadable(fault_of(self._packs, found, None if place is None else node_at(name, place)))
            if isinstance(found, BlockmapError)
            else found
            for (name, place), found in zip(refs, self._packs.nodes(refs), strict=True)
        ]
