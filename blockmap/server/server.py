"""Composes one server: the store, the cache, the fetcher between them, and the exports."""

import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from blockmap.cache.cache import Cache, default_cap
from blockmap.cache.scrubber import Scrubber
from blockmap.commit.moment import dirty_ranges
from blockmap.commit.task import PublishedCapture, PublishTask
from blockmap.errors import AlreadyExists, BlockmapError, HostError, NotFound, StoreError, StoreReadOnly, UsageError
from blockmap.fetch.fetcher import Fetcher
from blockmap.format import BLOCK, keys
from blockmap.format import version as versions
from blockmap.format.digest import Digest
from blockmap.format.reading_list import ReadItem
from blockmap.format.refs import Reference, parse_reference
from blockmap.format.trace import TraceHead
from blockmap.local.paths import traces_folder
from blockmap.origin.damage import DamageRecorder
from blockmap.origin.keepalive import ConnectionKeeper
from blockmap.origin.outage_policy import DEFAULT, OutagePolicy
from blockmap.origin.ranges import Ranges
from blockmap.origin.records import RecordCache, open_served
from blockmap.publish.dirty import block_runs
from blockmap.replay.replays import Replays
from blockmap.server.clones import CloneRebased, Clones
from blockmap.server.commits import CapturePublisher, Commits
from blockmap.server.hydration import Hydrations
from blockmap.server.listing import Listing
from blockmap.server.node_exchange import NodeExchange
from blockmap.server.opener import ANSWER_SECONDS, Opener, ResolvedStart, Standing
from blockmap.server.pin_notes import PinNotes
from blockmap.server.pins import OpenPins
from blockmap.server.registry import Opened, Registry
from blockmap.server.store_log import CallLog
from blockmap.store.base import Pruner, Writer
from blockmap.store.concurrent import spawn
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.observed import Observed
from blockmap.store.pins import pin_version, unpin_version
from blockmap.store.signing import Trust
from blockmap.trace.manager import TraceManager
from blockmap.volume.clone_table import CaptureDraft, CaptureRecord, CloneRecord

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_HEAD_SECONDS = 10.0


def _settled(act: Callable[[], _T]) -> _T:
    """Returns what `act` does with a clone that it finds; it is called again where a commit has put that on another version."""
    while True:
        with suppress(CloneRebased):
            return act()


class Server:
    """The exports of one store through one cache; safe to share between threads."""

    def __init__(
        self,
        store_url: str,
        cache_directory: Path,
        cache_bytes: int | None = None,
        outages: Mapping[str, OutagePolicy] | None = None,
        evidence: Callable[[TraceHead, Path], None] | None = None,
        state: Path | None = None,
        publisher: CapturePublisher | None = None,
        trust: Trust | None = None,
        hydrate: bool = True,
    ) -> None:
        """`outages` has the policies of exports by name, that of all others by the empty name; `evidence` is called with
        each trace that is evidence of a start's needs. Clones are below `state`, which is beside the cache where it is not
        given. `trust` has the keys of which one must have signed what is opened. `hydrate`: what starts miss is brought
        ahead of their reads."""
        engine, form = open_served(store_url, cache_directory, ANSWER_SECONDS)
        self.calls = CallLog()
        self._trust = trust or Trust()
        self._engine = engine
        self._store = Observed(engine, self.calls.note)
        cap = default_cap(cache_directory) if cache_bytes is None else cache_bytes
        self._cache = Cache(cache_directory, cap)
        self._records = RecordCache(cache_directory, self._store.url)
        self._scrubber = Scrubber(self._look_after_cache, self._cache.scrub)
        self._records.meet(self._store, form)
        ranges = Ranges(self._store)
        writer = engine if isinstance(engine, Writer) else None
        self._damage = DamageRecorder(self._store, writer)
        self._fetcher = Fetcher(ranges, self._cache, self._damage.note)
        self._replays = Replays(ranges, self._cache, self._fetcher.staging, self._fetcher.verifier)
        self._keeper = None if self._store.local else ConnectionKeeper(ranges.ping)
        mend = None if writer is None else NameLog(writer)
        self._opener = Opener(self._store, self._records, self._fetcher, self._replays, mend, trust=self._trust)
        self._outages = {"": DEFAULT, **(outages or {})}
        self._listing = Listing(self._store, self._records, ANSWER_SECONDS, self._outages[""], trust=self._trust)
        self._registry = Registry(self._fetcher)
        holder = f"the server of {cache_directory}, process {os.getpid()}"
        self._clones = Clones(state or cache_directory / "state", form.store, holder)
        self._pin_notes = PinNotes(state or cache_directory / "state", form.store)
        self._publisher = publisher
        self._exchange = NodeExchange(self._fetcher)
        self._commits = Commits(self._clones, self._publish, self._rebase)
        self._hydrations = Hydrations(self._fetcher, hydrate)
        self._pins = OpenPins(engine if isinstance(engine, Pruner) else None)
        self.traces = TraceManager(traces_folder(cache_directory), evidence or (lambda head, trace: None))
        self._lock = threading.Lock()  # guards _outages; never held across I/O, nor while another lock is taken

    def names(self) -> list[tuple[str, str]]:
        """Returns the catalogue, export names each with a description; StoreError where nothing is known of it."""
        return [*self._listing.names(), *self._clones.names()]

    def open(self, export: str) -> Opened:
        """Opens what an export name stands for now; NotFound, Untrusted, UsageError, StoreError, Corrupt, HostError."""
        name = export.partition("+")[0]
        policy = self._policy(name)

        def find_and_open() -> tuple[ResolvedStart, Opened]:
            clone, found = self._clones.find(name), self._find(export)
            if clone is None:
                return found, self._open_version(found, policy)
            return found, self._open_clone(clone, found, policy)

        found, opened = _settled(find_and_open)
        if opened.is_first:
            self._hydrations.follow(found, opened.start)
        return opened

    def resolve(self, export: str) -> str:
        """Returns the export name by digest of the version that `export` stands for now, with its label; reads of it get the
        outage policy of `export`. A clone stays a clone."""
        name, plus, label = export.partition("+")
        if self._clones.find(name) is not None:
            return export
        pinned = self._find(export).resolved.pinned
        with self._lock:
            if name in self._outages:
                self._outages.setdefault(pinned, self._outages[name])
        return pinned + plus + label

    def stands(self, names: Sequence[str]) -> list[Standing | None]:
        """Returns what names stand for now, and opens nothing: a clone counts as the image that it was made of; None where one
        stands for nothing, or cannot be opened here. StoreUnavailable."""

        def reference(name: str) -> Reference | None:
            try:
                clone = self._clones.find(name.partition("+")[0])
            except NotFound:  # of another store
                return None
            return parse_reference(name if clone is None else clone.origin)

        references = [reference(name) for name in names]
        found = iter(self._opener.stand([each for each in references if each is not None]))
        return [None if each is None else next(found) for each in references]

    def version(self, export: str) -> str:
        """Returns the export name by digest, with its label, of the version that starts of `export` read."""
        _, plus, label = export.partition("+")
        return self._find(export).resolved.pinned + plus + label

    def is_writable(self, export: str) -> bool:
        """Returns True if an export is a clone."""
        return self._clones.find(export.partition("+")[0]) is not None

    def is_untouched(self, export: str) -> bool:
        """Returns True if all that `export` shows is of the store: it is no clone, or nothing was written to it."""
        return self._clones.is_untouched(export.partition("+")[0])

    def clone(self, export: str, name: str, size: int | None) -> str:
        """Makes a clone of an image, of `size` bytes if that is given; returns what people should know.

        AlreadyExists, UsageError, NotFound, Collected, StoreError, HostError.
        """
        if self.is_writable(export):
            raise UsageError(f"{export} is a clone: make one of an image, as `blockmap images` lists them")
        found = self._find(export).resolved
        size = self._clones.check_new(name, export, found.root.size * BLOCK, size)
        with suppress(NotFound, StoreError):
            taken = self._opener.find(parse_reference(name)).resolved.reference
            raise AlreadyExists(f"{name} means the image {taken} already: choose another name for the clone")
        # Before the clone is there: a version that is in use is never without its pin.
        pin = self._pin(found.name)
        try:
            self._clones.create(name, export, found.pinned, pin, size)
        except BaseException:
            self._unpin(found.name, pin)
            raise
        if pin:
            return ""
        return (
            f"its version is not pinned, since {self._store.url} cannot be written from here: when no name stands for it any "
            "more, it may be collected; `blockmap attach --hydrate` keeps it on this host"
        )

    def fork(self, name: str, names: Sequence[str]) -> None:
        """Makes clones of a clone as it is at one moment, all or none; AlreadyExists, UsageError, Collected, StoreError,
        HostError."""

        def find_and_fork() -> None:
            clone, found = self._clone_of(name), self._find(name)
            for each in names:
                self._clones.check_new(each, name, clone.size, None)
            version = found.resolved.name
            pins: list[str] = []
            try:
                pins += (self._pin(version) for _ in names)
                base = self._registry.volume(found, self._policy(name))
                self._clones.fork(clone, base, list(zip(names, pins, strict=True)))
            except BaseException:
                for pin in pins:
                    self._unpin(version, pin)
                raise

        _settled(find_and_fork)

    def rewind(self, name: str, export: str) -> str:
        """Puts a clone that nobody uses on a version, and forgets what was written to it; returns the version's export name.

        NotFound, UsageError, Collected, StoreError, HostError.
        """
        clone = self._clone_of(name)
        if self.is_writable(export):
            raise UsageError(
                f"{export} is a clone: a clone is put on a version of an image, as `blockmap log` lists them"
            )
        found = self._find(export).resolved
        if found.root.size * BLOCK > clone.size:
            raise UsageError(f"{export} has more bytes than {name}: make a clone of it instead")
        pin = self._pin(found.name)
        try:
            self._clones.rewind(clone, found.pinned, pin)
        except BaseException:
            self._unpin(found.name, pin)
            raise
        before = parse_reference(clone.base).digest
        assert before is not None
        with suppress(StoreError):  # it is collected later then
            self._unpin(Digest(before), clone.pin)
        return found.pinned

    def remove_clone(self, name: str) -> str:
        """Removes a clone; returns what people should know. UsageError, NotFound, HostError."""
        removed = self._clones.remove(name)
        digest = parse_reference(removed.base).digest
        assert digest is not None
        try:
            self._unpin(Digest(digest), removed.pin)
        except StoreError as error:
            key = keys.pin(Digest(digest), removed.pin)
            return f"its version stays pinned, until somebody deletes {key} in {self._store.url}: {error}"
        return ""

    def prepare_capture(self, name: str) -> None:
        """Does beforehand what a capture would do while writers wait; UsageError, DiskFull, HostError."""
        clone = self._clone_of(name)
        if self._publisher is not None:
            self._publisher.prepare()
        self._clones.prepare(clone, self._registry.volume(self._find(name), self._policy(name)))

    def capture(self, name: str, draft: CaptureDraft, skip_unchanged: bool = False) -> int:
        """Captures a clone as it is at one moment, for it to become a version; returns the capture's number, or with
        `skip_unchanged` 0 where nothing was written since the last one.

        UsageError, DiskFull, HostError.
        """

        def find_and_capture() -> int:
            clone, found = self._clone_of(name), self._find(name)
            if found.resolved.version.config is None and json.loads(draft.changes):
                raise UsageError(f"{name} is the clone of a disk image, which has no configuration to change")
            base = self._registry.volume(found, self._policy(name))
            return self._clones.capture(clone, base, draft, skip_unchanged)

        number = _settled(find_and_capture)
        if number:
            self._commits.begin(number)
        return number

    def published(self, capture: int, seconds: float) -> PublishedCapture | str:
        """Returns what a capture has become, or after `seconds` why it is not published yet; NameMoved where a person must
        decide, NotFound where it was dropped."""
        return self._commits.wait(capture, seconds)

    def settle_captures(self, name: str, drop: bool, target: NameTarget | None, force: bool) -> list[int]:
        """Drops all captures of a clone, or has the first that waits for a decision published under another name or by
        force; returns the numbers of those. UsageError, HostError."""
        clone = self._clone_of(name)
        captures = self._clones.captures(clone.id)
        chosen = captures if drop else [each for each in captures if each.conflict][:1]
        for each in chosen:
            if drop:
                self._clones.drop(each)
            else:
                own = each.draft
                repo, tag = (target.repo, target.tag) if target is not None else (own.repo, own.tag)
                self._clones.redirect(each, repo, tag, force)
        self._commits.begin()
        numbers = [each.id for each in chosen]
        if drop:
            self._commits.forget(numbers)
        return numbers

    def config(self, export: str) -> bytes:
        """Returns the OCI image configuration of an export; NotFound where it has none."""
        found = self._find(export).resolved
        if found.version.config is None:
            raise NotFound(f"{export} is a disk image without a configuration: attach it instead")
        return found.version.config

    def readings(self, export: str) -> tuple[int, list[ReadItem], int]:
        """Returns the number of the profile that is replayed for an export, what its starts read, in order, for the kernel
        of a new device to be warmed with, and how many blocks of that come within a moment; 0 and nothing without one."""
        found = self._find(export)
        replay = found.replay
        head = None if replay is None else replay.wait_head(_HEAD_SECONDS)
        if replay is None or head is None:
            return 0, [], 0
        self._registry.note_profile(found, replay.number)
        return replay.number, head.read_items, replay.soon_blocks(head)

    def hydrate(self, export: str, wanted: bool = True) -> None:
        """Begins to fetch all of an export into the cache, or has its next start fetch nothing that was not asked for; NotFound,
        UsageError, StoreError, Corrupt."""
        found = self._find(export)
        if wanted:
            self._hydrations.begin(found)
        else:
            self._hydrations.refuse(found.key)

    def status(self) -> dict[str, object]:
        """Returns counters, for people and machines."""
        return {
            "store": self._store.url,
            "trust": self._trust.ids,
            **self._registry.status(),
            "unconfirmed_opens": self._opener.unconfirmed,
            "store_connected": self._keeper is None or self._keeper.is_warm,
            "hydrations": self._hydrations.status(),
            "remote": self.calls.status(),
            "fetch": {**self._fetcher.status(), **self._replays.status()},
            "cache": self._cache.status(),
            "traces": self.traces.status(),
        }

    def begin(self) -> None:
        """Has published what earlier servers captured, and removed what those that crashed have left."""
        self._commits.begin()
        spawn(self._tidy)

    def stop(self) -> None:
        """Ends all waiting for the store, with StoreUnavailable."""
        self._fetcher.stop()
        self._replays.stop()

    def close(self) -> None:
        """Ends all threads, once no reader is left.

        The order matters. When nobody may ask the store any more, all that waits for it ends at once; replays put into the
        fetcher's staging area, fetcher and staging area into the cache, and opens that are under way into the records.
        """
        self.traces.close()
        if self._keeper is not None:
            self._keeper.close()
        self._scrubber.close()
        self.stop()
        self._commits.close()
        self._pins.close()
        self._clones.end()
        self._opener.close()
        self._hydrations.close()
        self._replays.close()
        self._fetcher.close()
        self._damage.close()
        self._cache.close()
        self._records.close()

    def _look_after_cache(self) -> None:
        if self._cache.look_after():
            self._records.begin_anew(in_memory=self._cache.missing)

    def _find(self, export: str) -> ResolvedStart:
        """Returns what an export reads of the store: a clone, the version below it."""
        name, plus, label = export.partition("+")
        clone = self._clones.find(name)
        return self._opener.find(
            parse_reference(export if clone is None else clone.base + plus + label), self._policy(name)
        )

    def _clone_of(self, name: str) -> CloneRecord:
        clone = self._clones.find(name)
        if clone is None:
            raise UsageError(f"{name} is no clone: see `blockmap clones`")
        return clone

    def _policy(self, name: str) -> OutagePolicy:
        with self._lock:
            return self._outages.get(name, self._outages[""])

    def _publish(self, capture: CaptureRecord, is_first: bool) -> PublishedCapture:
        """Has a capture published, with all that this host knows of the version below it."""
        if self._publisher is None:
            raise HostError("this server publishes nothing")
        clone = self._clones.of_capture(capture)
        task = PublishTask(capture.id, is_first)
        try:
            found = self._opener.find(parse_reference(clone.base), self._policy(clone.name)).resolved
            runs = block_runs(dirty_ranges(self._clones.maps(capture), clone.size))
            task = replace(task, base=versions.encode(found.version), nodes=self._exchange.collect(found.root, runs))
        except BlockmapError as error:
            _log.info("the publisher of a capture reads all it needs itself: %s", error)
        done = self._publisher.publish(task)
        self._exchange.take(done.nodes)
        return done

    def _rebase(self, capture: CaptureRecord, export: str) -> None:
        """Puts a clone on the version that a capture of it has become."""
        clone = self._clones.of_capture(capture)
        found = self._opener.find(parse_reference(export), self._policy(clone.name))
        if clone.pin and isinstance(self._engine, Pruner):
            self._pin_notes.add(found.resolved.name, clone.pin)
            pin_version(self._engine, found.resolved.name, clone.pin)
        self._clones.rebase(
            clone, capture, found.resolved.pinned, self._registry.volume(found, self._policy(clone.name))
        )
        before = parse_reference(clone.base).digest
        if before is not None and before != found.resolved.name:
            try:
                self._unpin(Digest(before), clone.pin)
            except StoreError as error:
                _log.warning("%s stays pinned: %s", clone.base, error)

    def _tidy(self) -> None:
        """Deletes the pins of clones that a crash left without a clone, and layers that are in none."""
        try:
            needed = self._clones.tidy()
            for version, holder in self._pin_notes.old():
                if (version, holder) not in needed:
                    self._unpin(version, holder)
                    _log.info("version %s is not pinned any more for a clone that is gone", version.hex()[:12])
        except BlockmapError as error:
            _log.info("what a crash may have left stays for now: %s", error)

    def _pin(self, version: Digest) -> str:
        """Pins a version in the store for a clone; returns the holder, or nothing where the store cannot be written."""
        holder = f"clone-{secrets.token_hex(8)}"
        with suppress(StoreReadOnly):
            if isinstance(self._engine, Pruner):
                self._pin_notes.add(version, holder)
                pin_version(self._engine, version, holder)
                return holder
        return ""

    def _unpin(self, version: Digest, holder: str) -> None:
        if holder and isinstance(self._engine, Pruner):
            unpin_version(self._engine, version, holder)
            self._pin_notes.remove(version, holder)

    def _open_version(self, found: ResolvedStart, policy: OutagePolicy) -> Opened:
        opened, version = self._registry.open(found, policy), found.resolved.name
        self._pins.hold(version)

        def close() -> None:
            opened.close()
            self._pins.release(version)

        return replace(opened, close=close)

    def _open_clone(self, clone: CloneRecord, found: ResolvedStart, policy: OutagePolicy) -> Opened:
        volume = self._clones.open(clone, self._registry.volume(found, policy))
        if self._publisher is not None:
            self._publisher.prepare()
        try:
            opened = self._registry.open(found, policy, volume)
        except BaseException:
            self._clones.close(clone.name)
            raise

        def close() -> None:
            opened.close()
            self._clones.close(clone.name)

        return replace(opened, close=close)
