"""Collects garbage in two recorded phases, while others write (facts about the log: `store.collections`).

    condemn  what nothing needs, and nobody wrote lately, is listed in the log; for a grace nothing else happens
    sweep    the log says that deleting begins; every name's log gets a fence, which takes the number that a writer who has
             slept would create; then it is marked again, and what was condemned and is still not needed is deleted

Whoever finds something that is needed missing or damaged stops, and deletes nothing.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from blockmap.errors import Corrupt, FormatError, HostError, NotFound
from blockmap.format import keys, layer, oci
from blockmap.format.collection import MAX_KEYS, StepKind
from blockmap.format.digest import Digest
from blockmap.format.oci import DocumentRecord
from blockmap.publish.derived import put_next
from blockmap.store import limits
from blockmap.store.base import Pruner
from blockmap.store.collections import CollectionLog, CollectionState
from blockmap.store.concurrent import each
from blockmap.store.directory import DirectoryStore
from blockmap.store.log import LogReader
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.pins import is_stale
from blockmap.upkeep.mark import Marked, mark

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a collection would take."""

    garbage: Mapping[str, int]
    """Bytes by key, of what nothing needs and is older than the grace."""
    young: Mapping[str, int]
    """Bytes by key, of what nothing needs and may be in the making."""
    kept: int
    """Bytes of all other objects."""
    names: Mapping[str, int]


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
        self._store.replace(keys.CLOCK, b"")
        return self._store.modified(keys.CLOCK)

    def plan(self, state: CollectionState) -> Plan:
        """Returns what nothing needs; NotFound, Corrupt where something is missing or damaged."""
        now = self.now()
        listed = self._store.listing("")  # before the mark: what is named later and was written earlier is needed then
        marked = self._mark(state, now)
        garbage: dict[str, int] = {}
        young: dict[str, int] = {}
        needed = _Needed(self._store, marked, now)
        wanted = each(needed.has, listed)
        for (key, about), is_needed in zip(listed.items(), wanted, strict=True):
            if not is_needed:
                (young if about.modified > now - self._grace else garbage)[key] = about.size
        kept = sum(about.size for about in listed.values()) - sum(garbage.values()) - sum(young.values())
        return Plan(garbage, young, kept, marked.names)

    def condemn(self, state: CollectionState, plan: Plan) -> bool:
        """Begins a collection; returns False if another collector was faster."""
        chosen = sorted(plan.garbage)[:MAX_KEYS]
        return self._log.append(state, StepKind.CONDEMN, chosen, plan.names)

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
        needed = _Needed(self._store, marked, now)
        sizes = dict(zip(condemnation.keys, each(self._size, condemnation.keys), strict=True))
        wanted = dict(zip(sizes, each(needed.has, sizes), strict=True))
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
        return mark(self._store, now - self._keep, now, state.retired or {})

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


class _Needed:
    """Says of keys whether they are needed, given what is marked."""

    def __init__(self, store: Pruner, marked: Marked, now: float) -> None:
        self._store = store
        self._now = now
        self._versions = {name.hex() for name in marked.versions}
        self._roots = {root.hex() for root in marked.roots}
        self._packs = {pack.hex() for pack in marked.packs}
        self._keys = marked.keys()

    def has(self, key: str) -> bool:
        """Returns True for what is needed, and for what is of no kind that is known here."""
        kind, _, rest = key.partition("/")
        about = rest.partition("/")[0]
        if kind in ("packs", "versions"):
            return key in self._keys
        if kind in ("filemaps", "hooks"):
            return about in self._roots
        if kind in ("moved", "damaged"):
            return about in self._packs
        if kind == "bundles":
            return about in self._versions
        if kind in ("layers", "oci"):
            return self._leads(kind, about, key) in self._versions
        pin = keys.parse_pin(key)
        return pin is None or not is_stale(pin[1], self._now)

    def _leads(self, kind: str, about: str, key: str) -> str | None:
        """Returns the version that a layer or a document leads to; None if that cannot be read."""
        try:
            if kind == "layers":
                return layer.leads_to(self._store.get_range(key, 0, layer.HEAD_BYTES), bytes.fromhex(about)).hex()
            return oci.decode(self._store.get(key, limits.OCI)).version.hex()
        except (FormatError, Corrupt, NotFound, ValueError):
            return None
