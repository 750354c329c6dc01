"""Checks a whole store, past any cache, and mends what can be mended from what the store itself has.

What counts is what a collection keeps: what names stand for and stood for lately, and what is pinned. Of that, records, trees
and logs are read, and packs are looked at, or read whole. What nothing needs is garbage, and no error.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

from blockmap.errors import BlockmapError, Corrupt, FormatError, NotFound, StoreError
from blockmap.format import keys, pack_log
from blockmap.format import version as versions
from blockmap.format.digest import ABSENT, Digest
from blockmap.store import limits
from blockmap.store.base import Listed, Pruner
from blockmap.store.collections import CollectionReader, CollectionState, store_time
from blockmap.store.log import newest_of
from blockmap.store.names import NameLog
from blockmap.store.pack_logs import read_damage
from blockmap.store.profiles import ProfileReader
from blockmap.store.repository import VERSION_ATTEMPTS, Repository
from blockmap.store.walk import Spot, visit
from blockmap.upkeep.check_names import NameCheck, replace_object
from blockmap.upkeep.derived import check_derived
from blockmap.upkeep.findings import Problem, Report, read_each
from blockmap.upkeep.mark import LostVersion, Marked, NeededVersion, mark
from blockmap.upkeep.needed import find_garbage
from blockmap.upkeep.rewrite import store_again
from blockmap.upkeep.verify import check_packs

_log = logging.getLogger(__name__)

_IMPORT = "import the image again, or `blockmap fsck --from SOURCE` with the image that it was made of"
_MOVE = "it was committed, so no image has it: take back what the name stood for before, as `blockmap log` lists it, or remove it"


class StoreCheck:
    """Checks one store, and mends it."""

    def __init__(
        self,
        store: Pruner,
        keep: float,
        chains: Callable[[bytes | None], Collection[bytes]],
        warn: Callable[[str], object],
    ) -> None:
        """`keep` and `chains` are those of the collector; `warn` is told what is mended."""
        self._store = store
        self._repository = Repository(store)
        self._keep, self._chains, self._warn = keep, chains, warn

    def run(self, read: bool) -> Report:
        """Checks everything; with `read`, every byte that is needed, else what is needed to know that it is there."""
        store, report = self._store, Report()
        state, now = CollectionReader(store).state(), self._now()
        listed = store.listing("")
        marked = mark(store, now - self._keep, now, state.retired or {})
        report.names, report.versions, report.packs = len(marked.names), len(marked.versions), len(marked.packs)
        report.bytes = sum(marked.use.stored_bytes(pack) for pack in marked.use.packs)
        for lost in marked.lost:
            self._note_lost(report, lost, state)
        roots = [root for version in marked.needed for root in version.roots]
        found = check_packs(self._repository, roots, marked.use, read, read_damage(store))
        report.faults = [*marked.faults, *found]
        self._note_faults(report, marked, listed)
        NameCheck(store, report, self._warn).run(newest_of(listed, keys.parse_entry))
        self._check_derived(report, marked, read)
        self._check_logs(report, listed)
        if not report.faults and not marked.unreadable:
            report.garbage = find_garbage(store, listed, marked, now, 0)
        return report

    def mend(self, report: Report) -> None:
        """Mends what can be mended; another check says what was."""
        for problem in report.problems:
            if problem.mend is not None:
                try:
                    problem.mend()
                except BlockmapError as error:
                    self._warn(f"{problem.what} cannot be mended: {error}")
        listed = filter(None, map(keys.parse_pack, self._store.list(keys.PACKS)))
        count = store_again(self._store, self._repository.packs, listed, report.faults) if report.faults else 0
        if count:
            self._warn(f"{count:,} chunks and nodes were stored again from other packs that have them")

    def _now(self) -> float:
        try:
            return store_time(self._store)
        except StoreError as error:
            _log.info("this host's clock stands in for the store's: %s", error)
            return time.time()

    # --- versions

    def _note_lost(self, report: Report, lost: LostVersion, state: CollectionState) -> None:
        if lost.name == ABSENT:
            return  # the check of names says so
        if lost.is_pinned and isinstance(lost.error, NotFound):
            report.notes.append(
                f"{lost.holder} holds version {lost.name.hex()}, which is gone: if no clone of this name is left on its host, "
                f"delete {keys.PINS}{lost.name.hex()}/"
            )
            return
        may_be_made = lost.number > state.retired_number(lost.name)
        mend = partial(self._mend_record, lost) if may_be_made else None
        report.problems.append(
            Problem(lost.holder, f"the record of its version is lost: {lost.error}", f"{_IMPORT}", mend)
        )

    def _mend_record(self, lost: LostVersion) -> None:
        """Stores the record of a version anew from another number, or from the hint of a name."""
        names = NameLog(self._store)
        others = [keys.version(lost.name, n) for n in range(1, VERSION_ATTEMPTS + 1) if n != lost.number]
        hints = filter(None, (names.hint(*name) for name in names.catalogue()))
        for data in (*map(self._stored, others), *(found.version for found in hints)):
            try:
                versions.decode(data or b"", lost.name)
            except FormatError:
                continue
            key = keys.version(lost.name, lost.number)
            replace_object(self._store, key, data or b"")
            self._warn(f"{key} was stored again")
            return

    def _stored(self, key: str) -> bytes | None:
        try:
            return self._store.get(key, limits.VERSION)
        except (NotFound, Corrupt):
            return None

    def _note_faults(self, report: Report, marked: Marked, listed: Mapping[str, Listed]) -> None:
        if not report.faults:
            return
        by_name = {fault.name: fault for fault in report.faults if fault.name is not None}
        claimed: set[Digest] = set()
        for version in marked.needed:
            names = self._touched(version, by_name.keys())
            if not names:
                continue
            claimed |= names
            first = by_name[min(names)].message
            committed = version.record.parents and version.record.manifest is None
            report.problems.append(
                Problem(
                    version.holder,
                    f"{len(names):,} chunks and nodes that it needs are lost or damaged, of version {version.name.hex()}: {first}",
                    _MOVE if committed else _IMPORT,
                )
            )
        for fault in report.faults:
            if fault.name not in claimed:
                report.problems.append(Problem("a tree", fault.message, _IMPORT))

    def _touched(self, version: NeededVersion, lost: Collection[Digest]) -> set[Digest]:
        """Returns which chunks and nodes of some a version needs."""
        touched: set[Digest] = set()

        def note(level: int, row: list[Spot]) -> list[Spot]:
            touched.update(spot.ref[0] for spot in row if spot.ref[0] in lost)
            return row

        for root in version.roots:
            for _, found in visit(root, self._repository.packs.nodes, note):
                if not isinstance(found, BlockmapError):
                    touched.update(name for name in found.references if name in lost)
        return touched

    # --- what is derived, and logs

    def _check_derived(self, report: Report, marked: Marked, read: bool) -> None:
        repos: dict[Digest, set[str]] = {}
        for version in marked.needed:
            if not version.holder.startswith("pin "):
                repos.setdefault(version.name, set()).add(version.holder.rpartition(":")[0])
        wanted: list[tuple[Digest, int, versions.Version, list[bytes]]] = []
        known: set[bytes] = set()
        for name, records in marked.versions.items():
            number = max(records)
            chains = [chain for chain in self._chains(records[number].config) if chain not in known]
            known.update(chains)
            wanted.append((name, number, records[number], chains))

        def check(item: tuple[Digest, int, versions.Version, list[bytes]]) -> list[Problem]:
            name, number, record, chains = item
            return [
                Problem(
                    wrong.key,
                    wrong.message,
                    "importing the image again mends it",
                    None if wrong.mend is None else partial(wrong.mend, self._store, self._warn),
                )
                for wrong in check_derived(
                    self._store, name, record, chains, number, sorted(repos.get(name, ())), deep=read
                )
            ]

        for item, found in zip(wanted, read_each(check, wanted), strict=True):
            if isinstance(found, BlockmapError):
                report.notes.append(f"what is derived from version {item[0].hex()} is not checked: {found}")
            else:
                report.problems += (problem for problem in found if problem not in report.problems)

    def _check_logs(self, report: Report, listed: Mapping[str, Listed]) -> None:
        """Checks the logs of profiles, of collections, and about packs; keys of no known kind are noted."""
        profiles = ProfileReader(self._store)
        newest = newest_of(listed, keys.parse_profile)
        read = read_each(lambda item: profiles.get(*item[0], item[1]), newest.items())
        for ((repo, label), n), profile in zip(newest.items(), read, strict=True):
            if isinstance(profile, BlockmapError):
                action = f"record a start of {repo}+{label} again: it makes the next"
                report.problems.append(Problem(keys.profile(repo, label, n), str(profile), action))
        steps = filter(None, map(keys.parse_collection, listed))
        for step in read_each(CollectionReader(self._store).step, steps):
            if isinstance(step, BlockmapError):
                report.notes.append(f"{step}: collections go on without it")
        logs = [key for key in listed if keys.parse_moved(key) or keys.parse_damaged(key)]
        for key, found in zip(logs, read_each(self._pack_log, logs), strict=True):
            if isinstance(found, BlockmapError) and not isinstance(found, NotFound):  # collected meanwhile
                report.notes.append(f"{key} is damaged: what it said is not known, {found}")
        unknown = [key for key in listed if key.partition("/")[0] not in _KINDS]
        if unknown:
            report.notes.append(
                f"{len(unknown):,} objects are of no kind that this release knows, {unknown[0]} for one"
            )

    def _pack_log(self, key: str) -> None:
        """Raises FormatError for an entry of a log about a pack that is damaged."""
        data = self._store.get(key, limits.PACK_LOG)
        if (moved := keys.parse_moved(key)) is not None:
            pack_log.decode_moved(data, moved[0])
        if (damaged := keys.parse_damaged(key)) is not None:
            pack_log.decode_damaged(data, damaged[0])


_KINDS = {
    "blobs", "bundles", "damaged", "filemaps", "format", "gc", "hints", "hooks", "layers", "moved", "names", "oci", "packs", "pins",
    "profiles", "recipes", "versions",
}  # fmt: skip
"""What keys begin with."""
