"""Finds everything in a store that something needs: what is reached from names as they are and were, and from pins."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from blockmap.errors import BlockmapError, Corrupt, FormatError, NotFound
from blockmap.format import keys, pack_log
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.entry import root_of
from blockmap.format.placement import Placement
from blockmap.format.tree import Root
from blockmap.format.version import Version
from blockmap.store import limits
from blockmap.store.base import Pruner
from blockmap.store.concurrent import each
from blockmap.store.log import newest_of
from blockmap.store.names import NameReader
from blockmap.store.packs import pack_key
from blockmap.store.pins import is_stale
from blockmap.store.repository import Repository
from blockmap.upkeep.reach import Fault, PackUse, TreeWalk


@dataclass(frozen=True, slots=True)
class NeededVersion:
    """A record of a version that something needs."""

    holder: str
    """What needs it, as people type it: `repo:tag`, `repo:tag@{3}`, or a pin."""
    name: Digest
    number: int
    """The number of the record."""
    record: Version
    roots: tuple[Root, ...]
    """The roots, in the places where entry and record say that they are."""


@dataclass(frozen=True, slots=True)
class LostVersion:
    """A version that something needs and whose record cannot be read."""

    holder: str
    name: Digest
    """ABSENT where the entry itself cannot be read."""
    number: int
    error: BlockmapError
    is_pinned: bool = False
    """True if it is needed by a pin."""


@dataclass(slots=True)
class Marked:
    """What is needed."""

    needed: list[NeededVersion] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    """By name, REPO:TAG: the number of its newest entry."""
    versions: dict[Digest, dict[int, Version]] = field(default_factory=dict)
    """Versions by digest, with their records by number."""
    roots: set[Digest] = field(default_factory=set)
    packs: set[Digest] = field(default_factory=set)
    """All packs that trees refer to, and those to which their logs lead."""
    use: PackUse = field(default_factory=PackUse)
    """What of each pack is referred to, in place of what another pack lost as well."""
    sources: dict[Digest, set[Digest]] = field(default_factory=dict)
    """By pack: the packs whose logs lead to it."""
    lost: list[LostVersion] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    """What cannot be read of trees: what is below it is not marked."""

    def keys(self) -> set[str]:
        """Returns the keys of packs and records of versions that are needed."""
        records = {keys.version(name, number) for name, records in self.versions.items() for number in records}
        return records | set(map(pack_key, self.packs))

    def led_to(self, pack: Digest) -> set[Digest]:
        """Returns the packs whose logs lead to a pack, in however many steps."""
        found: set[Digest] = set()
        waiting = [pack]
        while waiting:
            new = self.sources.get(waiting.pop(), set()) - found
            found |= new
            waiting += new
        return found - {pack}

    @property
    def unreadable(self) -> list[LostVersion]:
        """Returns the versions that are lost, but for those that are gone and only pinned: such a pin may be what a crash left."""
        return [each for each in self.lost if not (each.is_pinned and isinstance(each.error, NotFound))]

    def check(self) -> None:
        """Raises Corrupt if anything is lost or damaged: what else it leads to is not known then, and nothing may be deleted."""
        if self.unreadable:
            first = self.unreadable[0]
            raise Corrupt(f"{first.holder} is lost: {first.error}") from first.error
        if self.faults:
            raise Corrupt(
                f"a tree that something needs is damaged, and nothing is deleted before it is healed: {self.faults[0].message}"
            )


def mark(store: Pruner, since: float, now: float, retired: Mapping[Digest, int]) -> Marked:
    """Marks what names stand for, what they stood for at any time from `since` on, and what is pinned.

    Times are in seconds since 1970 by the store's clock; `retired` are versions that were deleted before, with the highest
    number of a record. What is missing or damaged is noted, and the rest marked.
    """
    marked, repository = Marked(), Repository(store)
    catalogue = NameReader(store).catalogue()
    marked.names = {f"{repo}:{tag}": n for (repo, tag), n in catalogue.items()}
    named = each(lambda name: list(_of_name(store, *name[0], name[1], since, retired)), catalogue.items())
    pinned = each(lambda pin: list(_records(store, *pin)), _pinned(store, now).items())
    for found in (one for some in (*named, *pinned) for one in some):
        if isinstance(found, LostVersion):
            marked.lost.append(found)
            continue
        marked.needed.append(found)
        marked.versions.setdefault(found.name, {})[found.number] = found.record
        marked.roots.update(root.digest for root in found.roots if root.digest != ABSENT)
    walk = TreeWalk(repository.packs)
    for version in marked.needed:
        marked.faults += (found for found in walk.walk(version.roots) if isinstance(found, Fault))
    marked.use = walk.use
    runs = {version.record.run.pack for version in marked.needed if version.record.run is not None}
    marked.packs = {*walk.use.packs, *runs}
    _mark_moved(store, marked)
    return marked


def _of_name(
    store: Pruner, repo: str, tag: str, newest: int, since: float, retired: Mapping[Digest, int]
) -> Iterator[NeededVersion | LostVersion]:
    """Yields what a name stood for at any time from `since` on."""
    names, repository = NameReader(store), Repository(store)
    seen: set[tuple[Digest, int, Placement | None]] = set()
    for n in range(newest, 0, -1):
        holder = f"{repo}:{tag}" if n == newest else f"{repo}:{tag}@{{{n}}}"
        try:
            entry, _ = names.entry(repo, tag, n)
        except (NotFound, Corrupt) as error:
            yield LostVersion(holder, ABSENT, 0, error)
        else:
            if entry.version is not None and (entry.version, entry.number, entry.root) not in seen:
                seen.add((entry.version, entry.number, entry.root))
                try:
                    record = repository.version_at(entry.version, entry.number)
                    roots = (root_of(entry, record), record.root, record.extra)
                    yield NeededVersion(holder, entry.version, entry.number, record, roots)
                except (NotFound, Corrupt) as error:
                    if n == newest or isinstance(error, Corrupt) or entry.number > retired.get(entry.version, 0):
                        yield LostVersion(holder, entry.version, entry.number, error)
        try:
            if store.modified(keys.entry(repo, tag, n)) < since:
                return  # what the name stood for before had ended by then
        except NotFound:
            continue


def _records(store: Pruner, version: Digest, holders: list[str]) -> Iterator[NeededVersion | LostVersion]:
    """Yields all records of a version that is pinned, or that there is none."""
    listed = newest_of(store.list(keys.versions(version)), keys.parse_version)
    repository = Repository(store)
    holder = ", ".join(f"pin {each}" for each in holders)
    missing = NotFound(f"there is no version {version.hex()} in {store.url}")
    found = 0
    for number in range(1, listed.get(version, 0) + 1):
        try:
            record = repository.version_at(version, number)
        except NotFound:
            continue
        except Corrupt as error:
            yield LostVersion(holder, version, number, error, is_pinned=True)
        else:
            yield NeededVersion(holder, version, number, record, (record.root, record.extra))
        found += 1
    if not found:
        yield LostVersion(holder, version, 0, missing, is_pinned=True)


def _pinned(store: Pruner, now: float) -> dict[Digest, list[str]]:
    """Returns who has pinned each version."""
    found: dict[Digest, list[str]] = {}
    for key in store.list(keys.PINS):
        pin = keys.parse_pin(key)
        if pin is not None and not is_stale(pin[1], now):
            found.setdefault(pin[0], []).append(pin[1])
    return found


def _mark_moved(store: Pruner, marked: Marked) -> None:
    """Marks the packs that hold now what was lost from packs that are needed, or was moved away from them."""
    logs: dict[Digest, list[str]] = {}
    for key in store.list(keys.MOVED):
        about = keys.parse_moved(key)
        if about is not None:
            logs.setdefault(about[0], []).append(key)
    waiting = [pack for pack in logs if pack in marked.packs]
    while waiting:
        pack = waiting.pop()
        needed = marked.use.prefixes(pack)
        for data in each(lambda key: store.get(key, limits.PACK_LOG), logs[pack]):
            try:
                places = pack_log.decode_moved(data, pack)
            except FormatError:
                continue  # readers do without it as well
            own = {name: place for name, place in places.items() if name[:8] in needed}
            others = {place.pack for place in own.values()}
            before = {other: marked.use.count(other) for other in others if other in logs}
            for name, place in own.items():
                marked.use.add(name, place, pack in marked.use.node_packs)
            for other in others:
                marked.sources.setdefault(other, set()).add(pack)
            waiting += [other for other, count in before.items() if marked.use.count(other) > count]
            marked.packs |= others
