"""Reads what an import can deduplicate against: the versions that names stand for, their trees and hooks, in few round trips."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from blockmap.errors import BlockmapError, Corrupt, FormatError, StoreError
from blockmap.format import hooks, keys
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.tree import Root
from blockmap.publish.dedup_index import DedupIndex, StoredTree
from blockmap.publish.derived import put_derived
from blockmap.publish.local import CatalogueSnapshot, LocalCatalogue, Numbered
from blockmap.publish.parallel import gather
from blockmap.store import limits
from blockmap.store.base import Pruner
from blockmap.store.collections import CollectionReader, CollectionState
from blockmap.store.names import NameReader
from blockmap.store.numbered import newest_right, read_numbers
from blockmap.store.pack_logs import read_damage
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves

_log = logging.getLogger(__name__)

Warn = Callable[[str], None]
T = TypeVar("T")
R = TypeVar("R")
_Name = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Catalogue:
    versions: Mapping[Numbered, tuple[Root, Root]]
    """The root and extra root of each version that a name stands for and that could be read."""
    tags: Mapping[str, Mapping[str, Numbered]]
    """By repository and tag, the versions that names stand for and that could be read."""
    known: DedupIndex
    collections: CollectionState
    """What the log of collections said before the catalogue was read."""


def read_catalogue(store: Pruner, names: NameReader, local: LocalCatalogue, warn: Warn) -> Catalogue:
    """Reads what `local` lacks, 16 requests at a time; leaves out, and logs, a name or tree that cannot be read.

    Makes hooks that are missing, damaged or found wrong, and stores them if the store can be written.
    """
    collections = CollectionReader(store).state()
    before, now = local.load(), CatalogueSnapshot()
    repository = Repository(store)
    found = [(repo, tag, n) for (repo, tag), n in sorted(names.catalogue().items())]
    by_key = {keys.entry(*name): name for name in found}

    def left_out(name: _Name, error: BlockmapError) -> None:
        warn(f"not deduplicating against {name[0]}:{name[1]}: {error}")

    now.entries = _complete(
        by_key, before.entries, lambda key: _entry(names, by_key[key]), lambda key, error: left_out(by_key[key], error)
    )
    stands: dict[Numbered, _Name] = {}
    for key, (version, number) in now.entries.items():
        if version is not None:
            stands.setdefault((version, number), by_key[key])
    now.versions = _complete(
        stands, before.versions, lambda at: _roots(repository, at), lambda at, error: left_out(stands[at], error)
    )
    roots: dict[Digest, list[Root]] = {}
    for pair in now.versions.values():
        for root in pair:
            if root.digest != ABSENT and root not in roots.setdefault(root.digest, []):
                roots[root.digest].append(root)
    trees = _trees(store, roots, before.hooks, now.hooks, warn)
    local.save(now)

    def mend(root: Digest) -> None:
        warn(f"the hooks of tree {root.hex()} are wrong, and made again")
        try:
            now.hooks[root] = _make(store, roots[root])
        except BlockmapError as error:
            warn(f"they cannot be: {error}")
        else:
            local.save(now)

    index = DedupIndex(repository, trees, warn, read_damage(store), mend, collections.condemned)
    tags: dict[str, dict[str, Numbered]] = {}
    for key, (version, number) in now.entries.items():
        if version is not None and (version, number) in now.versions:
            repo, tag, _ = by_key[key]
            tags.setdefault(repo, {})[tag] = version, number
    return Catalogue(now.versions, tags, index, collections)


def _complete(
    wanted: Iterable[T], remembered: dict[T, R], fetch: Callable[[T], R], failed: Callable[[T, BlockmapError], None]
) -> dict[T, R]:
    """Returns what is wanted, from memory or from the store; leaves out what cannot be read."""
    made = {key: remembered[key] for key in wanted if key in remembered}
    missing = [key for key in wanted if key not in remembered]
    for key, value in zip(missing, gather(fetch, missing), strict=True):
        if isinstance(value, BlockmapError):
            failed(key, value)
        else:
            made[key] = value
    return made


def _entry(names: NameReader, name: _Name) -> tuple[Digest | None, int]:
    entry = names.entry(*name)[0]
    return entry.version, entry.number


def _roots(repository: Repository, at: Numbered) -> tuple[Root, Root]:
    version = repository.version(*at)
    return version.root, version.extra


def _trees(
    store: Pruner,
    roots: dict[Digest, list[Root]],
    remembered: dict[Digest, bytes],
    kept: dict[Digest, bytes],
    warn: Warn,
) -> list[StoredTree]:
    """Returns the trees whose hooks can be read or made; the hooks' objects go to `kept`."""
    found: dict[Digest, hooks.Hooks] = {}

    def take(root: Digest, data: bytes) -> None:
        found[root] = hooks.decode(data, root)
        kept[root] = data

    for root in roots.keys() & remembered.keys():
        try:
            take(root, remembered[root])
        except FormatError as error:
            warn(f"what this host remembers of tree {root.hex()} is fetched again: {error}")
    unread = [root for root in roots if root not in found]
    for root, data in zip(unread, gather(lambda root: _stored(store, root), unread), strict=True):
        if isinstance(data, bytes):
            take(root, data)
        elif data is not None:
            warn(f"the hooks of tree {root.hex()} are of no use, and made again: {data}")
    unmade = [root for root in roots if root not in found]
    for root, made in zip(unmade, gather(lambda root: _make(store, roots[root]), unmade), strict=True):
        if isinstance(made, BlockmapError):
            warn(f"not deduplicating against tree {root.hex()}: {made}")
        else:
            take(root, made)
    return [StoredTree(own, found[root]) for root, own in roots.items() if root in found]


def _stored(store: Pruner, root: Digest) -> bytes | None:
    """Returns the object with the hooks of a tree; None where there is none, Corrupt where it is damaged."""

    def check(data: bytes) -> bytes:
        hooks.decode(data, root)
        return data

    key = partial(keys.hooks, root)
    return newest_right(store, key, limits.HOOKS, check, read_numbers(store, key, limits.HOOKS))


def _make(store: Pruner, places: list[Root]) -> bytes:
    """Makes the hooks of a tree from its leaves, and stores them where that is possible; returns the object."""
    repository = Repository(store)
    error: BlockmapError = Corrupt("it is stored nowhere")
    for root in places:
        try:
            own = leaves(root, repository.packs.nodes)
            made = hooks.encode(root.digest, hooks.sample((span, leaf.chunks) for span, leaf in own))
        except BlockmapError as why:
            error = why
            continue
        try:
            put_hooks(store, _log.info, root.digest, made)
        except StoreError as why:
            _log.debug("the hooks of %s are not stored: %s", root.digest.hex(), why)
        return made
    raise error


def put_hooks(store: Pruner, warn: Callable[[str], object], root: Digest, data: bytes) -> None:
    """Stores the hooks of a tree, unless the newest that are stored are just these."""
    put_derived(store, warn, partial(keys.hooks, root), limits.HOOKS, data, lambda stored: stored == data)
