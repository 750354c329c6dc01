"""Adds up and verifies a whole version in the store, past any cache; what trees refer to is read pack by pack."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from blockmap.errors import BlockmapError, Corrupt, NotFound
from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.tree import Root
from blockmap.format.version import Version
from blockmap.store.base import Writer
from blockmap.store.concurrent import each
from blockmap.store.pack_logs import Damage, read_moved, record_damage
from blockmap.store.packs import Packs, pack_key, raised
from blockmap.store.plan import MAX_REQUEST_BYTES, Wanted, chunk_at, requests
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves
from blockmap.upkeep.reach import Fault, PackUse, TreeWalk, fault_of, reference


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


def check_version(repository: Repository, version: Version) -> Iterator[Fault]:
    """Reads every node and chunk of a version, and yields what is wrong with it; goes on after damage."""
    walk = TreeWalk(repository.packs)
    roots = (version.root, version.extra)
    yield from (found for found in walk.walk(roots) if isinstance(found, Fault))
    yield from check_packs(repository, roots, walk.use)


def check_packs(
    repository: Repository, roots: Sequence[Root], use: PackUse, read: bool = True, damage: Damage | None = None
) -> Iterator[Fault]:
    """Yields the chunks below some roots that cannot be read, given what these refer to.

    Each pack is looked at once, 16 at the same time: everything that is referred to is read and checked, or without `read` only
    that it is there. What `damage` records of a pack is read in any case. Where a pack has not what it should have, and the log
    of the pack does not lead to what is sound, the trees are gone through again, and say what that is.
    """
    packs, recorded = repository.packs, damage or {}

    def check(pack: Digest) -> set[bytes]:
        if not read:
            return _beyond(repository, pack, use, recorded.get(pack, frozenset()))
        return _unsound(packs, pack, use)

    named = use.chunk_packs  # the walk has read all nodes
    bad = {pack: found for pack, found in zip(named, each(check, named), strict=True) if found}
    lost = {pack: left for pack, found in bad.items() if (left := _not_moved(repository, pack, found, bad, use))}
    if lost:
        yield from _read_again(packs, roots, lost)


def record_faults(store: Writer, faults: Iterable[Fault]) -> None:
    """Records in the store which parts of packs are damaged or lost, so that nobody relies on them."""
    damaged: dict[Digest, set[Digest]] = {}
    for fault in faults:
        for pack in fault.packs:
            assert fault.name is not None
            damaged.setdefault(pack, set()).add(fault.name)
    each(lambda found: record_damage(store, *found), damaged.items())


def _beyond(repository: Repository, pack: Digest, use: PackUse, damaged: frozenset[Digest] | None) -> set[bytes]:
    """Returns what is referred to of a pack and lies beyond its end, or is recorded as damaged."""
    wanted = use.references(pack)
    if damaged is None:
        return wanted
    try:
        length = repository.store.size(pack_key(pack))
    except NotFound:
        return wanted
    prefixes = {name[:8] for name in damaged}
    beyond = use.end(pack) > length
    return {each for each in wanted if each[8:] in prefixes or (beyond and _end(each) > length)}


def _unsound(packs: Packs, pack: Digest, use: PackUse) -> set[bytes]:
    """Returns what is referred to of a pack and is not there as it should be; reads a part of the pack at a time."""
    wanted = use.references(pack)
    try:
        head = packs.head(pack)
    except (Corrupt, NotFound):
        return wanted  # frames may be sound without it
    listed = {reference(name, place): chunk_at(name, place) for name, place in head.entries}
    bad = wanted - listed.keys()
    found = [listed[each] for each in wanted if each in listed]
    for request in requests(found, MAX_REQUEST_BYTES):
        read = packs.fetch(request)
        for item in request:
            stored = read[item.key]
            try:
                packs.open_chunk(item.name, item.place, raised(stored))
            except (Corrupt, NotFound):
                bad.add(reference(item.name, item.place))
    return bad


def _not_moved(
    repository: Repository, pack: Digest, found: set[bytes], bad: Mapping[Digest, set[bytes]], use: PackUse
) -> set[bytes]:
    """Returns what of a pack is not there, and not where the log of the pack leads to either."""
    sound: set[bytes] = set()
    checked: dict[Digest, set[bytes]] = {}
    for places in read_moved(repository.store, pack):
        for name, place in places.items():
            good = checked.get(place.pack)
            if good is None:
                good = checked[place.pack] = use.references(place.pack) - bad.get(place.pack, set())
            if reference(name, place) in good:
                sound.add(name[:8])
    return {each for each in found if each[8:] not in sound}


def _read_again(packs: Packs, roots: Sequence[Root], lost: Mapping[Digest, set[bytes]]) -> Iterator[Fault]:
    """Reads the chunks that packs may have lost, wherever they are, and yields those that cannot be read."""
    seen: set[Wanted] = set()
    for leaf in TreeWalk(packs).walk(roots):
        if isinstance(leaf, Fault):
            continue
        items = [
            chunk_at(name, place)
            for name, place in zip(leaf.chunks, leaf.placements, strict=True)
            if place is not None and place.pack in lost and reference(name, place) in lost[place.pack]
        ]
        new = [item for item in dict.fromkeys(items) if item not in seen]
        seen.update(new)
        read = packs.chunks(new)
        for item in new:
            found = read[item.key]
            if isinstance(found, Corrupt):
                found = packs.chunks([item])[item.key]  # what was damaged on its way is no damage of the store
            if isinstance(found, BlockmapError):
                yield fault_of(packs, found, item)


def _end(wanted: bytes) -> int:
    return int.from_bytes(wanted[:4], "little") + int.from_bytes(wanted[4:8], "little")
