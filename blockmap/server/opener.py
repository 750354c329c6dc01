"""Opens by name and by digest in few steps, and with the store away.

An open by name takes two steps over the network. The first reads the name's hint; the second asks the log to confirm it, and
at the same time reads the run of nodes that the first reads need. If this host has opened the name before, its own record
takes the hint's place, and the log alone is asked; if it does not answer in time, the name is opened as this host knows it.
If there is a bundle, it is read in place of the nodes, which it begins with.

Whatever the store does meanwhile, an open takes no longer than a read may: threads of the opener ask, and who opens waits.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from blockmap.errors import BlockmapError, Corrupt, FormatError, NotFound, StoreError, StoreUnavailable, Untrusted
from blockmap.fetch.fetcher import Fetcher
from blockmap.format import keys
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.entry import Entry, root_of
from blockmap.format.hint import BundleRef, Hint
from blockmap.format.refs import DEFAULT_LABEL, Reference, pinned_export
from blockmap.format.tree import Root
from blockmap.format.version import NodeRun, Version
from blockmap.origin.outage_policy import DEFAULT, OutagePolicy
from blockmap.origin.records import RecordCache
from blockmap.replay.replay import Replay
from blockmap.replay.replays import Replays
from blockmap.server.known import KnownImages
from blockmap.store.base import Reader
from blockmap.store.concurrent import each, spawn
from blockmap.store.crew import Crew
from blockmap.store.names import NameLog, StoredEntry
from blockmap.store.plan import node_at
from blockmap.store.repository import Repository
from blockmap.store.resolver import Resolved, by_digest, check_presence, find_entry, no_image
from blockmap.store.signing import Trust
from blockmap.store.trusted_names import TrustedNames
from blockmap.volume.start import Key

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

FRESH_SECONDS = 1.0
"""Seconds after its confirmation for which a name is not asked for again; a local store is always asked."""
ANSWER_SECONDS = 1.0
"""Seconds that a store has to confirm what this host knows."""
_SILENT_SECONDS = 5.0
"""Seconds for which a store that did not answer is not waited for again."""
_GRACE_SECONDS = 1.5
"""Seconds that an open takes beyond what the outage policy says, at most, as a read does."""
_PATROL_SECONDS = 0.5
"""Seconds after which an open that waits sees that the server is ending."""
_OPENS = 64
"""Opens that are under way at once; those that a store does not answer hold their threads for two minutes."""
_CLOSE_SECONDS = 1.0
"""Seconds that opens under way are waited for at the end."""
_NEVER = float("-inf")
_AT_ONCE = OutagePolicy(0.0)


@dataclass(frozen=True, slots=True)
class ResolvedStart:
    """What an export stands for, and the bundle that is replayed for its start."""

    resolved: Resolved
    replay: Replay | None

    @property
    def label(self) -> str:
        return self.resolved.reference.label or DEFAULT_LABEL

    @property
    def key(self) -> Key:
        return self.resolved.pinned, self.label


@dataclass(frozen=True, slots=True)
class Standing:
    """What a name stands for now."""

    export: str
    """The version's export name by digest."""
    time: int
    """The Unix time at which the name was moved there; 0 for a digest."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What an open by name or digest has found."""

    start: ResolvedStart
    nodes: Future[None]
    """Ends when the nodes are at hand that the first reads need, as far as it is worth while to wait for them."""


@dataclass(frozen=True, slots=True)
class _Opening:
    """An open that is under way."""

    reference: Reference
    entry: Entry
    version: Future[Version]
    primed: Future[None]
    replay: Replay | None = None

    def end(self, patient: bool = True) -> _Found:
        """Waits for the record of the version; nodes are to be waited for if `patient`, but for those of a bundle."""
        version = self.version.result()
        assert self.entry.version is not None
        found = Resolved(self.reference, self.entry.version, version, root_of(self.entry, version))
        nodes = self.primed if patient and self.replay is None else _done(None)
        return _Found(ResolvedStart(found, self.replay), nodes)


class Opener:
    """Finds versions in few steps, and fetches what their first reads need; safe to share between threads."""

    def __init__(
        self,
        store: Reader,
        known: RecordCache,
        fetcher: Fetcher,
        replays: Replays,
        mend: NameLog | None,
        clock: Callable[[], float] = time.monotonic,
        answer_seconds: float = ANSWER_SECONDS,
        trust: Trust | None = None,
    ) -> None:
        """`mend` rewrites hints that are out of date."""
        self._store = store
        self._known = KnownImages(known, trust)
        self._fetcher = fetcher
        self._replays = replays
        self._mend = mend
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._names = TrustedNames(store, trust or Trust())
        self._repository = Repository(store, trust)
        self._crew = Crew(_OPENS, "open")
        self._lock = threading.Lock()  # guards what follows; never held across I/O, nor while another lock is taken
        self._confirmed: dict[tuple[str, str], float] = {}
        """When each name was last confirmed."""
        self._silent_at = _NEVER
        """When the store last did not answer in time, unless it has answered since."""
        self._unconfirmed = 0

    @property
    def unconfirmed(self) -> int:
        """Returns the number of opens that this host's own record of a name served, since the store did not answer."""
        with self._lock:
            return self._unconfirmed

    def find(self, reference: Reference, policy: OutagePolicy = DEFAULT) -> ResolvedStart:
        """Returns what `reference` stands for, or raises, within what the policy says of reads.

        Raises NotFound, Untrusted, Corrupt, StoreError if neither store nor disk knows.
        """
        asked: Future[_Found] = Future()
        seconds = policy.wait_s + _GRACE_SECONDS
        end = time.monotonic() + seconds
        self._crew.run(partial(_answer, asked, lambda: self._find(reference)))
        if not self._wait(asked, end):
            asked.cancel()
            raise StoreUnavailable(
                f"{self._store.url} did not say within {seconds:.1f} s what {reference} is: check that it can be reached, or "
                "let opens and reads wait longer for it (`--outage`)"
            )
        found = asked.result()
        self._wait(found.nodes, end)  # reads ask for what has not come
        return found.start

    def stand(self, references: Sequence[Reference]) -> list[Standing | None]:
        """Returns what references stand for now, without opening any; None where one stands for nothing, or for what no trusted
        key signed. Corrupt, StoreUnavailable."""

        def find(reference: Reference) -> Standing | None:
            if reference.digest is not None:
                return Standing(pinned_export(reference.repo, reference.digest), 0)
            try:
                entry = find_entry(self._names, reference)
            except Untrusted:
                return None
            if entry is None or entry.version is None:
                return None
            return Standing(pinned_export(reference.repo, entry.version), entry.time)

        return self._ask(lambda: each(find, references))

    def _wait(self, future: Future[_T], end: float) -> bool:
        """Returns True if a future is done in time. Raises StoreUnavailable where the server ends meanwhile."""
        while not wait([future], max(min(_PATROL_SECONDS, end - time.monotonic()), 0.0)).done:
            if self._fetcher.outage.stopped:
                raise StoreUnavailable("the server is ending: open again when it is there")
            if time.monotonic() >= end:
                return False
        return True

    def close(self) -> None:
        """Ends the threads, when nobody asks the store any more."""
        self._crew.close(_CLOSE_SECONDS)

    def _find(self, reference: Reference) -> _Found:
        if reference.digest is not None:
            return self._by_digest(reference, Digest(reference.digest))
        assert reference.tag is not None
        if reference.past is not None:
            entry = find_entry(self._names, reference)
            if entry is None:
                raise no_image(reference, self._store)
            return self._begin(reference, entry).end()
        seen = self._known.entry(reference.repo, reference.tag)
        return self._look(reference, 0) if seen is None else self._again(reference, seen)

    def _by_digest(self, reference: Reference, digest: Digest) -> _Found:
        known = self._known.by_digest(digest)
        kept = None if known is None else Resolved(reference, *known, known[1].root)
        running = None if kept is None else self._running(reference, kept)
        if kept is not None and running is None and not self._works(kept.root):
            _log.warning("what this host knew of %s does not work, and is forgotten", reference)
            self._known.forget_version(kept.name)
            kept = None
        found = kept or by_digest(self._repository, reference, digest)
        if kept is None:
            self._known.keep_version(found.name, 1, found.version)
        if found.document is not None:
            self._known.keep_document(digest, found.document)
        bundles = self._known.bundles(found.name) if running is None else (running.ref,)
        replay = self._replay(reference, found.name, bundles, lambda: found.root)
        primed = self._bring(reference, found.version.run, found.root, lambda: found.root, replay)
        patient = kept is None and replay is None  # else the store may be away, or the bundle is coming
        return _Found(ResolvedStart(found, replay), primed if patient else _done(None))

    def _running(self, reference: Reference, kept: Resolved) -> Replay | None:
        """Returns the replay of a version that its name began a moment ago, as a device opens by digest what was resolved by
        name; None if that found the root in another place than this host's record has it."""
        found = self._replays.recent(keys.bundles(kept.name), reference.label or DEFAULT_LABEL)
        with suppress(BlockmapError):
            return found if found is not None and found.root() == kept.root else None
        return None

    def _again(self, reference: Reference, seen: StoredEntry) -> _Found:
        """Opens a name that this host knows."""
        assert reference.tag is not None
        repo, tag = reference.repo, reference.tag
        with self._lock:
            confirmed_at = self._confirmed.get((repo, tag), _NEVER)
        at_once = not self._store.local and self._clock() - confirmed_at < FRESH_SECONDS
        opening = self._begin(reference, seen.entry)
        if at_once:
            return opening.end()

        def ask() -> tuple[int, Hint | None]:
            hint = spawn(lambda: self._names.hint(repo, tag))  # it may refer to a bundle that is newer than the entry
            return self._names.confirm(repo, tag, seen), hint.result()

        try:
            low, hint = self._ask(ask)
            if low == seen.entry.n:
                self._note(repo, tag, seen)
                return self._with_bundles(opening, hint).end()
            if low == 0:
                check_presence(self._store)
                self._known.forget_name(repo, tag)
            return self._look(reference, low, hint)
        except StoreError as error:
            with self._lock:
                self._unconfirmed += 1
            _log.warning("%s is opened as it was last seen here, entry %d: %s", reference, seen.entry.n, error)
            return opening.end(patient=False)

    def _look(self, reference: Reference, low: int, hint: Hint | None = None) -> _Found:
        """Opens a name whose entry `low` is known to be there, 0 for none; reads its hint if that is not given."""
        assert reference.tag is not None
        repo, tag = reference.repo, reference.tag
        hint = hint or self._names.hint(repo, tag)
        newest = None
        if hint is not None and hint.entry.n >= low:
            believed = StoredEntry(hint.entry, hint.stored)
            asked = spawn(lambda: self._names.confirm(repo, tag, believed))
            opening = self._begin(reference, hint.entry, hint) if self._names.is_trusted(repo, tag, believed) else None
            stands = asked.result()
            if stands == hint.entry.n and opening is not None:
                self._note(repo, tag, believed)
                self._known.keep_hinted(hint)
                return opening.end()
            low = max(low, stands)
            newest = believed if stands == hint.entry.n else None
        seen = self._names.judge(repo, tag, newest or self._search(reference, low))
        if seen is None:
            raise no_image(reference, self._store)
        self._note(repo, tag, seen)
        return self._begin(reference, seen.entry).end()

    def _search(self, reference: Reference, low: int) -> StoredEntry:
        """Returns the newest entry of a name whose hint does not have it, where entry `low` is known to be there."""
        assert reference.tag is not None
        repo, tag = reference.repo, reference.tag
        newest = self._names.search(repo, tag, low)
        if newest is None:
            check_presence(self._store)
            raise no_image(reference, self._store)
        mend = self._mend
        if mend is not None:
            spawn(lambda: mend.mend(repo, tag, newest))
        return newest

    def _begin(self, reference: Reference, entry: Entry, hint: Hint | None = None) -> _Opening:
        """Asks for what is not at hand: the record of the version, the bundle or the run of nodes."""
        name, number = entry.version, entry.number
        if name is None:
            return _Opening(reference, entry, _failed(no_image(reference, self._store)), _done(None))
        record = self._known.version(name, number) or (None if hint is None else self._known.hinted_version(hint))
        version = _done(record) if record is not None else spawn(lambda: self._from_store(name, number))
        root = root_of(entry, record) if record is not None else None

        def wait_root() -> Root:
            return root_of(entry, version.result())

        bundles = self._known.bundles(name) if hint is None else hint.bundles
        replay = self._replay(reference, name, bundles, wait_root)
        primed = self._bring(reference, entry.run, root, wait_root, replay)
        return _Opening(reference, entry, version, primed, replay)

    def _with_bundles(self, opening: _Opening, hint: Hint | None) -> _Opening:
        """Returns an open by what this host knew, with the bundle that the name's hint refers to now, if it is another."""
        entry, name = opening.entry, opening.entry.version
        if name is None or hint is None or hint.entry != entry:
            return opening
        about = _choose(hint.bundles, opening.reference, name)
        if about is None or (opening.replay is not None and opening.replay.key == about.key):
            return opening
        replay = self._replay(opening.reference, name, hint.bundles, lambda: root_of(entry, opening.version.result()))
        return opening if replay is None else replace(opening, replay=replay)

    def _replay(
        self, reference: Reference, name: Digest, bundles: Sequence[BundleRef], root: Callable[[], Root]
    ) -> Replay | None:
        about = _choose(bundles, reference, name)
        if about is None:
            return None
        return self._replays.begin(about, root, lambda good: self._known.judge_bundle(name, about, good))

    def _bring(
        self,
        reference: Reference,
        run: NodeRun | None,
        root: Root | None,
        wait_root: Callable[[], Root],
        replay: Replay | None,
    ) -> Future[None]:
        """Begins to read a run of nodes, unless the bundle brings it, or the cache has the root, if that is known already."""
        if root is not None and self._fetcher.has_node(root.digest, root.placement):
            return _done(None)
        if run is None and replay is None:
            return _done(None)

        def prime() -> None:
            if replay is not None and replay.wait_nodes():
                top = wait_root()
                if self._fetcher.has_node(top.digest, top.placement):
                    return
            if run is None:
                return
            try:
                self._fetcher.prime(run, wait_root)
            except BlockmapError as error:
                _log.warning("the nodes of %s are fetched one by one: %s", reference, error)

        return spawn(prime)

    def _from_store(self, name: Digest, number: int) -> Version:
        """Returns the record of a version, and keeps it; NotFound, Corrupt, StoreUnavailable."""
        record = self._repository.version(name, number)
        self._known.keep_version(name, number, record)
        return record

    def _works(self, root: Root) -> bool:
        """Returns False if the store says that a root is not where this host's record of its version has it."""
        if root.digest == ABSENT or self._fetcher.has_node(root.digest, root.placement):
            return True
        if root.placement is None:
            return False
        wanted = node_at(root.digest, root.placement)
        try:
            self._ask(lambda: self._fetcher.node(wanted, self._fetcher.outage.attempt(_AT_ONCE)))
        except (Corrupt, FormatError, NotFound):
            return False
        except StoreError:
            pass
        return True

    def _note(self, repo: str, tag: str, seen: StoredEntry) -> None:
        """Notes that the log has just confirmed an entry."""
        with self._lock:
            self._confirmed[repo, tag] = self._clock()
        self._known.confirm(repo, tag, seen)

    def _ask(self, question: Callable[[], _T]) -> _T:
        """Returns the store's answer if it comes in time; StoreUnavailable."""

        def ask() -> _T:
            answer = question()
            with self._lock:
                self._silent_at = _NEVER
            return answer

        with self._lock:
            silent_at = self._silent_at
        if self._clock() - silent_at < _SILENT_SECONDS:
            raise StoreUnavailable(f"{self._store.url} did not answer a moment ago")
        try:
            return spawn(ask).result(self._answer_seconds)
        except TimeoutError:
            with self._lock:
                self._silent_at = self._clock()
            raise StoreUnavailable(
                f"{self._store.url} did not answer within {self._answer_seconds:g} s: check that it can be reached"
            ) from None


def _choose(bundles: Sequence[BundleRef], reference: Reference, name: Digest) -> BundleRef | None:
    """Returns the bundle of a version for the label that was asked for, if its key is one of such a bundle."""
    label = reference.label or DEFAULT_LABEL
    for about in bundles:
        found = keys.parse_bundle(about.key)
        if found is not None and (about.label, about.key) == (label, keys.bundle(name, label, *found[1:])):
            return about
    return None


def _answer(asked: Future[_T], answer: Callable[[], _T]) -> None:
    """Answers a question, unless nobody waits for that any more."""
    if not asked.set_running_or_notify_cancel():
        return
    try:
        asked.set_result(answer())
    except BaseException as error:
        asked.set_exception(error)


def _done(value: _T) -> Future[_T]:
    future: Future[_T] = Future()
    future.set_result(value)
    return future


def _failed(error: Exception) -> Future[Version]:
    future: Future[Version] = Future()
    future.set_exception(error)
    return future
