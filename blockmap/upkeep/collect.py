"""Collects garbage in two recorded phases, while others write (facts about the log: `store.collections`).

    condemn  what nothing needs, and nobody wrote lately, is listed in the log; for a grace nothing else happens, but that what
             is needed of packs that are mostly garbage, and listed as well, is moved to new packs
    sweep    the log says that deleting begins; every name's log gets a fence, which takes the number that a writer who has
             slept would create; then it is marked again, and what was condemned and is still not needed is deleted

Whoever finds something that is needed missing or damaged stops, and deletes nothing.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from blockmap.errors import BlockmapError, Corrupt, FormatError, HostError, NotFound
from blockmap.format import keys, layer, oci
from blockmap.format.collection import MAX_KEYS, StepKind
from blockmap.format.digest import Digest
from blockmap.format.oci import DocumentRecord
from blockmap.publish.derived import put_next
from blockmap.publish.pack_health import PackHealth
from blockmap.store import limits
from blockmap.store.base import Listed, Pruner
from blockmap.store.collections import CollectionLog, CollectionState, store_time
from blockmap.store.concurrent import each
from blockmap.store.directory import DirectoryStore
from blockmap.store.log import LogReader
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.pack_logs import read_damage
from blockmap.store.packs import pack_key
from blockmap.store.repository import Repository
from blockmap.upkeep.mark import Marked, mark
from blockmap.upkeep.needed import Needed, find_garbage
from blockmap.upkeep.rewrite import compact, has_moved

_log = logging.getLogger(__name__)


_SPARSE = 0.5
"""The share of a pack that nothing needs from which on the rest is moved: then no more is copied than becomes free."""
_LEAST_FREED = 1 << 20
"""Bytes that must become free for a pack to be rewritten, which costs some six requests, and an entry of its log for good."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a collection would take."""

    garbage: Mapping[str, int]
    """Bytes by key, of what nothing needs and is older than the grace."""
    young: Mapping[str, int]
    """Bytes by key, of what nothing needs and may be in the making."""
    kept: int
    """Bytes of all other objects."""
    sparse: Mapping[Digest, tuple[int, int]]
    """Packs of chunks that are mostly garbage, with the bytes of each that are needed, and of all of it."""
    marked: Marked

    @property
    def copied(self) -> int:
        """Returns how many bytes are copied from packs that are mostly garbage."""
        return sum(needed for needed, _ in self.sparse.values())

    @property
    def freed(self) -> int:
        """Returns how many bytes become free with the packs that are mostly garbage."""
        return sum(size for _, size in self.sparse.values()) - self.copied


@dataclass(frozen=True, slots=True)
class Swept:
    """What was deleted."""

    objects: int
    bytes: int


class Collector:
    """Collects garbage of one store."""

    def __init__(
        self, store: Pruner, keep: float, grace: float, chains: Callable[[bytes | None], Collection[bytes]]
    ) -> None:
        """What names stood for is kept for `keep` seconds; `chains` gives the chain IDs of the layers of a configuration."""
        self._store = store
        self._chains = chains
        self._keep = keep
        self._grace = grace
        self._log = CollectionLog(store)

    def state(self) -> CollectionState:
        return self._log.state()

    def due_in(self, state: CollectionState) -> float:
        """Returns the seconds until the open condemnation may be swept; 0 or less if it may be now."""
        assert state.condemnation is not None
        return self._store.modified(keys.collection(state.condemnation.n)) + self._grace - self.now()

    def now(self) -> float:
        """Returns the time by the store's clock, in seconds since 1970."""
        return store_time(self._store)

    def plan(self, state: CollectionState) -> Plan:
        """Returns what nothing needs; NotFound, Corrupt where something is missing or damaged."""
        now = self.now()
        listed = self._store.listing("")
        marked = self._mark(state, now)
        found = find_garbage(self._store, listed, marked, now, self._grace)
        return Plan(found.old, found.young, found.kept, self._sparse(listed, marked, now), marked)

    def condemn(self, state: CollectionState, plan: Plan) -> bool:
        """Begins a collection; returns False if another collector was faster.

        Packs that are mostly garbage are condemned with the garbage: the next sweep deletes those whose rest was moved by then
        (`compact`). So only the collector who has won copies anything.
        """
        chosen = sorted([*map(pack_key, plan.sparse), *plan.garbage])[:MAX_KEYS]
        return self._log.append(state, StepKind.CONDEMN, chosen, plan.marked.names)

    def compact(self, plan: Plan) -> tuple[int, list[BlockmapError]]:
        """Moves what is needed of condemned packs; returns how many bytes that were, and why some packs were left alone."""
        condemned = self._log.state().condemned
        sparse = [pack for pack in plan.sparse if pack_key(pack) in condemned]
        if not sparse:
            return 0, []
        health = PackHealth(self._store, read_damage(self._store), condemned)
        return compact(self._store, Repository(self._store).packs, plan.marked, sparse, health)

    def sweep(self, state: CollectionState) -> Swept:
        """Deletes what an open condemnation lists and nothing needs; goes on where a collector before has stopped.

        HostError if another collector was faster.
        """
        condemnation = state.condemnation
        assert condemnation is not None
        if not state.sweeping:
            if not self._log.append(state, StepKind.SWEEP, condemned=condemnation.n):
                raise HostError("another host has begun to delete what was condemned: nothing is left to do here")
            state = self._log.state()
        self._fence()
        now = self.now()
        marked = self._mark(state, now)
        needed = Needed(self._store, marked, now)
        sizes = dict(zip(condemnation.keys, each(self._size, condemnation.keys), strict=True))
        wanted = dict(zip(sizes, each(needed.has, sizes), strict=True))
        for key in self._moved([key for key, is_wanted in wanted.items() if is_wanted], marked, state):
            wanted[key] = False
        retired = dict(state.retired or {})
        for key in condemnation.keys:
            record = keys.parse_version(key)
            if record is not None and not wanted[key]:
                retired[record[0]] = max(record[1], retired.get(record[0], 0))
        doomed = {key: size for key, size in sizes.items() if size is not None and not wanted[key]}
        homes = _Homes(marked, self._chains)
        each(lambda key: self._rehome(key, homes), doomed)
        each(self._store.delete, doomed)
        self._log.append(state, StepKind.DONE, condemned=condemnation.n, retired=retired)
        return Swept(len(doomed), sum(doomed.values()))

    def remove_leftovers(self) -> int:
        """Removes files that writers who were killed have left in a directory; returns their number."""
        if not isinstance(self._store, DirectoryStore):
            return 0
        before = self.now() - self._grace
        old = [path for path, written in self._store.leftovers().items() if written < before]
        for path in old:
            Path(path).unlink(missing_ok=True)
        return len(old)

    def _mark(self, state: CollectionState, now: float) -> Marked:
        marked = mark(self._store, now - self._keep, now, state.retired or {})
        marked.check()
        return marked

    def _sparse(self, listed: Mapping[str, Listed], marked: Marked, now: float) -> dict[Digest, tuple[int, int]]:
        """Returns the packs of chunks that are to be rewritten, as `Plan` has them."""
        found: dict[Digest, tuple[int, int]] = {}
        for pack in marked.use.chunk_packs:  # those with nodes have a thousandth of all, and opens read runs of them
            about = listed.get(pack_key(pack))
            if about is not None and about.modified <= now - self._grace:
                needed = marked.use.stored_bytes(pack)
                if about.size - needed >= max(_SPARSE * about.size, _LEAST_FREED):
                    found[pack] = needed, about.size
        return found

    def _moved(self, condemned: Iterable[str], marked: Marked, state: CollectionState) -> list[str]:
        """Returns the keys of those condemned packs of which all that is needed has been moved."""
        packs = {key: pack for key in condemned if (pack := keys.parse_pack(key)) is not None}
        if not packs:
            return []
        health = PackHealth(self._store, read_damage(self._store), state.condemned)
        repository = Repository(self._store)
        return [key for key, pack in packs.items() if has_moved(repository.packs, marked, pack, health)]

    def _fence(self) -> None:
        """Puts a fence on top of every name's log."""
        names = NameLog(self._store)
        each(lambda name: names.fence(NameTarget(*name)), names.catalogue())

    def _size(self, key: str) -> int | None:
        try:
            return self._store.size(key)
        except NotFound:
            return None

    def _rehome(self, key: str, homes: "_Homes") -> None:
        """Stores anew, with a version that stays, what leads from a layer or document to one that goes."""
        kind, hexadecimal, *_ = key.split("/")
        if kind not in ("layers", "oci"):
            return
        digest = bytes.fromhex(hexadecimal)
        try:
            if kind == "layers":
                home = homes.of_chain(digest)
                if home is not None:
                    record = layer.decode(self._store.get(key, limits.LAYER), digest)
                    moved = record._replace(version=home.version, number=home.number)
                    self._add(partial(keys.layer, digest), layer.encode(moved))
                return
            leads = homes.of_document(digest, oci.decode(self._store.get(key, limits.OCI)))
            if leads is not None:
                self._add(partial(keys.oci, digest), oci.encode(leads))
        except (FormatError, Corrupt, NotFound) as error:
            _log.debug("%s is derived, and not kept: %s", key, error)

    def _add(self, key: Callable[[int], str], data: bytes) -> None:
        put_next(self._store, key, LogReader(self._store, key).newest(), [data])


class _Home(NamedTuple):
    """A version that stays, and the number of its record."""

    version: Digest
    number: int


class _Homes:
    """Finds a version that stays for a layer or a document."""

    def __init__(self, marked: Marked, chains: Callable[[bytes | None], Collection[bytes]]) -> None:
        self._versions = {_Home(name, min(records)): records[min(records)] for name, records in marked.versions.items()}
        self._chains = {
            chain: home for home, version in reversed(self._versions.items()) for chain in chains(version.config)
        }

    def of_chain(self, chain: bytes) -> _Home | None:
        """Returns a version that has a stack of layers."""
        return self._chains.get(chain)

    def of_document(self, digest: bytes, record: DocumentRecord) -> DocumentRecord | None:
        """Returns what leads from a document to a version that has it, given the record that leads to another."""
        leads = (replace(record, version=home.version, number=home.number) for home in self._versions)
        fitting = zip(leads, self._versions.values(), strict=True)
        return next((each for each, version in fitting if each.fits(digest, version)), None)
