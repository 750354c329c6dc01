"""Finds everything in a store that something needs: what is reached from names as they are and were, and from pins."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from blockmap.errors import Corrupt, FormatError, NotFound
from blockmap.format import keys, pack_log
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.entry import root_of
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
from blockmap.store.walk import packs_below

_Needed = tuple[Digest, int, Version, tuple[Root, ...]]
"""A version, the number of its record, the record, and where its roots are."""


@dataclass(slots=True)
class Marked:
    """What is needed."""

    versions: dict[Digest, dict[int, Version]] = field(default_factory=dict)
    """Versions by digest, with their records by number."""
    roots: set[Digest] = field(default_factory=set)
    packs: set[Digest] = field(default_factory=set)
    names: dict[str, int] = field(default_factory=dict)
    """By name, REPO:TAG: the number of its newest entry."""

    def keys(self) -> set[str]:
        """Returns the keys of packs and records of versions that are needed."""
        records = {keys.version(name, number) for name, records in self.versions.items() for number in records}
        return records | set(map(pack_key, self.packs))


def mark(store: Pruner, since: float, now: float, retired: Mapping[Digest, int]) -> Marked:
    """Marks what names stand for, what they stood for at any time from `since` on, and what is pinned.

    Times are in seconds since 1970 by the store's clock; `retired` are versions that were deleted before, with the highest
    number of a record. Raises NotFound or Corrupt where something is missing or damaged: what else it leads to is not known
    then, and nothing may be deleted.
    """
    marked = Marked()
    catalogue = NameReader(store).catalogue()
    marked.names = {f"{repo}:{tag}": n for (repo, tag), n in catalogue.items()}
    needed: list[_Needed] = []
    for found in each(lambda name: _of_name(store, *name[0], name[1], since, retired), catalogue.items()):
        needed += found
    for found in each(lambda version: _records(store, version), set(_pinned(store, now))):
        needed += found
    starts: list[Root] = []
    for name, number, record, roots in needed:
        marked.versions.setdefault(name, {})[number] = record
        starts += roots
        if record.run is not None:
            marked.packs.add(record.run.pack)
    marked.roots = {root.digest for root in starts if root.digest != ABSENT}
    try:
        marked.packs |= packs_below(starts, Repository(store).packs.nodes)
    except (NotFound, Corrupt) as error:
        raise Corrupt(
            f"a tree that something needs is damaged, and nothing is deleted before it is healed: {error}"
        ) from error
    _mark_moved(store, marked)
    return marked


def _of_name(
    store: Pruner, repo: str, tag: str, newest: int, since: float, retired: Mapping[Digest, int]
) -> list[_Needed]:
    """Returns what a name stood for at any time from `since` on."""
    names, repository = NameReader(store), Repository(store)
    found: list[_Needed] = []
    for n in range(newest, 0, -1):
        entry, _ = names.entry(repo, tag, n)
        if entry.version is not None:
            try:
                record = repository.version_at(entry.version, entry.number)
                roots = (root_of(entry, record), record.root, record.extra)
                found.append((entry.version, entry.number, record, roots))
            except NotFound as error:
                if n == newest or entry.number > retired.get(entry.version, 0):
                    raise Corrupt(f"{repo}:{tag}@{{{n}}} is lost: {error}") from error
        if store.modified(keys.entry(repo, tag, n)) < since:
            break  # what the name stood for before had ended by then
    return found


def _records(store: Pruner, version: Digest) -> list[_Needed]:
    """Returns all records of a version."""
    listed = newest_of(store.list(keys.versions(version)), keys.parse_version)
    repository = Repository(store)
    found: list[_Needed] = []
    for number in range(1, listed.get(version, 0) + 1):
        try:
            record = repository.version_at(version, number)
        except NotFound:
            continue
        found.append((version, number, record, (record.root, record.extra)))
    return found


def _pinned(store: Pruner, now: float) -> Iterator[Digest]:
    for key in store.list(keys.PINS):
        found = keys.parse_pin(key)
        if found is not None and not is_stale(found[1], now):
            yield found[0]


def _mark_moved(store: Pruner, marked: Marked) -> None:
    """Marks the packs that hold now what was lost from packs that are needed."""
    logs: dict[Digest, list[str]] = {}
    for key in store.list(keys.MOVED):
        about = keys.parse_moved(key)
        if about is not None:
            logs.setdefault(about[0], []).append(key)
    waiting = [pack for pack in logs if pack in marked.packs]
    while waiting:
        pack = waiting.pop()
        for data in each(lambda key: store.get(key, limits.PACK_LOG), logs[pack]):
            try:
                others = {place.pack for place in pack_log.decode_moved(data, pack).values()}
            except FormatError:
                continue  # readers do without it as well
            waiting += [other for other in others - marked.packs if other in logs]
            marked.packs |= others
