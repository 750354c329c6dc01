"""Stores chunks and nodes again in new packs, and has the logs of the packs where they were say so.

Nodes never change, so what refers to an old place finds the new one through the log of the old place's pack. That is how
packs that are mostly garbage are compacted, and how something that one pack lost is stored again from another.
"""

import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from blockmap.errors import BlockmapError, Corrupt, NotFound
from blockmap.format import node
from blockmap.format.digest import Digest
from blockmap.format.pack import TARGET_BYTES, PackedFrame, PackHead, PackKind, seal
from blockmap.format.placement import Placement
from blockmap.publish.object_writer import put
from blockmap.publish.pack_health import PackHealth
from blockmap.store.base import Writer
from blockmap.store.concurrent import each
from blockmap.store.pack_logs import record_moved
from blockmap.store.packs import Packs, Sealer, pack_key, raised
from blockmap.store.plan import Wanted, chunk_at, node_at
from blockmap.upkeep.mark import Marked
from blockmap.upkeep.reach import Fault, reference

_HEADS_AT_ONCE = 256
"""Packs whose heads are read at once in search of what others lost; a head takes some 100 KB in memory."""


@dataclass(slots=True)
class _Filling:
    """Frames that one new pack is to have, and from which packs each was moved."""

    frames: list[PackedFrame] = field(default_factory=list)
    sources: list[Collection[Digest]] = field(default_factory=list)
    size: int = 0


class PackRewriter:
    """Fills new packs; `finish` must follow."""

    def __init__(self, store: Writer) -> None:
        self._store = store
        self._filling = {kind: _Filling() for kind in (PackKind.CHUNKS, PackKind.NODES)}
        self.count = 0
        """Chunks and nodes that were stored."""
        self.bytes = 0

    def add(self, kind: PackKind, frame: PackedFrame, sources: Collection[Digest]) -> None:
        """Takes a frame, which the logs of the packs `sources` are to lead to."""
        filling = self._filling[kind]
        if filling.size + len(frame.data) > TARGET_BYTES:
            self._store_pack(kind)
            filling = self._filling[kind]
        filling.frames.append(frame)
        filling.sources.append(sources)
        filling.size += len(frame.data)

    def finish(self) -> None:
        for kind in self._filling:
            self._store_pack(kind)

    def _store_pack(self, kind: PackKind) -> None:
        filling, self._filling[kind] = self._filling[kind], _Filling()
        if not filling.frames:
            return
        made = seal(kind, filling.frames, secrets.token_bytes(16))
        put(self._store, pack_key(made.name), made.parts)
        moved: dict[Digest, dict[Digest, Placement]] = {}
        for frame, place, sources in zip(filling.frames, made.placements, filling.sources, strict=True):
            for source in sources:
                moved.setdefault(source, {})[frame.digest] = place
        each(lambda found: record_moved(self._store, *found), moved.items())
        self.count += len(filling.frames)
        self.bytes += filling.size


def compact(
    store: Writer, packs: Packs, marked: Marked, sparse: Iterable[Digest], health: PackHealth
) -> tuple[int, list[BlockmapError]]:
    """Copies what is needed of packs of chunks to new packs; returns the bytes that were copied, and what went wrong.

    Copies that `health` finds are not made again. A pack of which something that is needed cannot be read stays as it is. The
    logs of packs that lead to one of these lead to the new packs at once, since readers follow few steps.
    """
    rewriter = PackRewriter(store)
    errors: list[BlockmapError] = []
    for pack in sparse:
        try:
            _copy(packs, marked, pack, health, rewriter)
        except (Corrupt, NotFound) as error:
            errors.append(error)
    rewriter.finish()
    return rewriter.bytes, errors


def has_moved(packs: Packs, marked: Marked, pack: Digest, health: PackHealth) -> bool:
    """Returns True if all that is needed of a pack is elsewhere, and the pack's log leads to it."""
    try:
        needed = _needed(packs.head(pack), marked)
    except (Corrupt, NotFound):
        return False
    if len(needed) < len(marked.use.references(pack)):
        return False  # something is where the head has nothing
    return all(health.moved(item.name, pack) is not None for item in needed)


def store_again(store: Writer, packs: Packs, listed: Iterable[Digest], faults: Iterable[Fault]) -> int:
    """Stores again what some packs have lost and another pack has, whatever needs that one; returns how much it was."""
    wanted: dict[Digest, set[Digest]] = {}
    for fault in faults:
        if fault.name is not None and fault.packs:
            wanted.setdefault(fault.name, set()).update(fault.packs)
    rewriter = PackRewriter(store)
    names = list(listed)
    for start in range(0, len(names), _HEADS_AT_ONCE):
        if not wanted:
            break
        heads = each(lambda name: _head(packs, name), names[start : start + _HEADS_AT_ONCE])
        for head in filter(None, heads):
            for name, place in head.entries:
                if name in wanted and (found := _read(packs, name, place, head.kind is PackKind.NODES)) is not None:
                    rewriter.add(head.kind, found, wanted.pop(name))
    rewriter.finish()
    return rewriter.count


def _copy(packs: Packs, marked: Marked, pack: Digest, health: PackHealth, rewriter: PackRewriter) -> None:
    needed = [item for item in _needed(packs.head(pack), marked) if health.moved(item.name, pack) is None]
    led_here = {other: marked.use.prefixes(other) for other in marked.led_to(pack)}
    stored = packs.fetch(needed)
    read: list[PackedFrame] = []
    for item in needed:
        data = raised(stored[item.key])
        packs.open_chunk(item.name, item.place, data)
        read.append(PackedFrame(item.name, item.place.codec, bytes(data), item.place.raw))
    for frame in read:
        others = [other for other, prefixes in led_here.items() if frame.digest[:8] in prefixes]
        rewriter.add(PackKind.CHUNKS, frame, [pack, *others])


def _needed(head: PackHead, marked: Marked) -> list[Wanted]:
    """Returns what of a pack is needed, in order."""
    if not head.entries:
        return []
    used = marked.use.references(head.entries[0][1].pack)
    return [chunk_at(name, place) for name, place in head.entries if reference(name, place) in used]


def _head(packs: Packs, name: Digest) -> PackHead | None:
    try:
        return packs.head(name)
    except (Corrupt, NotFound):
        return None


def _read(packs: Packs, name: Digest, place: Placement, is_node: bool) -> PackedFrame | None:
    """Returns the frame of a chunk or node for another pack, None if it is not sound."""
    item = node_at(name, place) if is_node else chunk_at(name, place)
    try:
        stored = packs.stored([item])
        if not is_node:
            packs.open_chunk(name, place, stored)
            return PackedFrame(name, place.codec, bytes(stored), place.raw)
        frame = node.encode(packs.open_node(name, place, stored)[0])  # names the packs, its own too
    except (Corrupt, NotFound):
        return None
    return Sealer().frames([(name, frame)])[0]
