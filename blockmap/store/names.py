"""Names as dense logs of entries: moving a name is creating its next entry.

The search for the newest begins at the entry in the name's hint. A hint is advice: it counts only once the log was
asked for that entry and, at the same time, for the next. A writer that loses the race for a number learns who won it.
"""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256

from blockmap.errors import (
    BlockmapError,
    CannotList,
    Corrupt,
    FormatError,
    NameMoved,
    NotFound,
    StoreError,
)
from blockmap.format import catalogue, hint, keys
from blockmap.format import entry as entries
from blockmap.format.digest import Digest
from blockmap.format.entry import Entry
from blockmap.format.hint import BundleRef, Hint
from blockmap.format.placement import Placement
from blockmap.format.refs import Moment, NameEntry
from blockmap.format.version import NodeRun, Version
from blockmap.store import limits
from blockmap.store.base import Reader, Writer
from blockmap.store.bundles import newest_bundles
from blockmap.store.concurrent import each, spawn
from blockmap.store.log import DenseLog, LogReader, newest_of, nonce
from blockmap.store.signing import Signer

_log = logging.getLogger(__name__)

_READ_AHEAD = 64
"""Entries of a history that are asked for at once."""


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry of a name, and its stored form."""

    entry: Entry
    stored: bytes


@dataclass(frozen=True, slots=True)
class NameTarget:
    """A name that is to be moved."""

    repo: str
    tag: str

    def __str__(self) -> str:
        return f"{self.repo}:{self.tag}"


@dataclass(frozen=True, slots=True)
class EntryDraft:
    """The content of an entry, but for the fields that its log and its writer add."""

    version: Digest | None
    """None removes the name."""
    number: int
    """The number of the version's record."""
    root: Placement | None = None
    run: NodeRun | None = None
    oci: bytes | None = None
    """SHA-256 of the OCI manifest."""
    message: str = ""
    is_fence: bool = False
    nonce: str = ""
    """Random text that a writer has noted before, so that it finds its entry after a crash; made anew where it is empty."""

    @classmethod
    def of(cls, version: Version, number: int, message: str = "") -> "EntryDraft":
        """Returns the draft that makes a name stand for a version with a record under `number`."""
        oci = None if version.manifest is None else sha256(version.manifest).digest()
        return cls(version.name, number, version.root.placement, version.run, oci, message)


class NameReader:
    """Finds what names stand for."""

    def __init__(self, store: Reader) -> None:
        self._store = store

    def newest(self, repo: str, tag: str) -> Entry | None:
        """Returns the newest entry of a name, which may remove it; None where there is none. Corrupt, StoreUnavailable."""
        found = self.newest_stored(repo, tag)
        return found.entry if found else None

    def newest_stored(self, repo: str, tag: str, believed: StoredEntry | None = None) -> StoredEntry | None:
        """Returns the same as `newest`, with its stored form; the hint is not read where an entry is believed to be the newest."""
        if believed is None and (hinted := self.hint(repo, tag)) is not None:
            believed = StoredEntry(hinted.entry, hinted.stored)
        found = self._follow(repo, tag, believed)
        if found is not None and (believed is None or believed.stored != found.stored):
            self._mend(repo, tag, found)
        return found

    def hint(self, repo: str, tag: str) -> Hint | None:
        """Returns the hint of a name, which may be wrong; None where it is absent or damaged."""
        try:
            return hint.decode(self._store.get(keys.name_hint(repo, tag), limits.HINT), repo, tag)
        except NotFound:
            return None
        except BlockmapError as error:
            _log.warning("the hint of %s:%s is not used: %s", repo, tag, error)
            return None

    def confirm(self, repo: str, tag: str, believed: StoredEntry) -> int:
        """Asks for an entry that is believed to be the newest, and for the next, at once.

        Returns its own number where it is; one more where the next is there too; 0 where the log has another in its place.
        StoreUnavailable.
        """
        n, log = believed.entry.n, self._log(repo, tag)
        more = spawn(lambda: log.exists(n + 1))
        try:
            stands = log.get(n) == believed.stored
        except (NotFound, Corrupt):
            stands = False
        moved = more.result()
        if not stands:
            _log.info("entry %d of %s:%s is not what it was said to be: looking for the newest", n, repo, tag)
            return 0
        return n + moved

    def search(self, repo: str, tag: str, low: int) -> StoredEntry | None:
        """Returns the newest entry, where number `low` is known to be there (0: none is); Corrupt, StoreUnavailable."""
        n = self._log(repo, tag).newest(low)
        return StoredEntry(*self.entry(repo, tag, n)) if n else None

    def entry(self, repo: str, tag: str, n: int) -> tuple[Entry, bytes]:
        """Returns entry `n` of a name and its stored form; NotFound, Corrupt."""
        data = self._log(repo, tag).get(n)
        return _decode(data, NameTarget(repo, tag), n), data

    def past(self, repo: str, tag: str, past: NameEntry | Moment) -> Entry | None:
        """Returns the entry that a name had, which may remove it; None where there was none. Corrupt, StoreUnavailable."""
        if isinstance(past, Moment):
            return next((entry for entry in self.history(repo, tag) if entry.time <= past.seconds), None)
        try:
            return self.entry(repo, tag, past.n)[0]
        except NotFound:
            return None

    def history(self, repo: str, tag: str) -> Iterator[Entry]:
        """Returns all entries, newest first, some read ahead; Corrupt where one does not continue the one before it."""
        newest = self.newest(repo, tag)
        n, expected = newest.n if newest else 0, None
        at_once = 1
        while n > 0:
            numbers = range(n, max(n - at_once, 0), -1)
            for entry, data in each(lambda number: self.entry(repo, tag, number), numbers):
                if expected is not None and entries.digest(data) != expected:
                    raise Corrupt(f"entry {entry.n} of {repo}:{tag} is not the one that entry {entry.n + 1} continues")
                expected = entry.previous
                yield entry
            n, at_once = numbers[-1] - 1, min(at_once * 2, _READ_AHEAD)

    def catalogue(self) -> dict[tuple[str, str], int]:
        """Returns the number of the newest entry of every name, by repository and tag; removed names are among them.

        Where the engine cannot list, it comes from the one object in which writers keep it. Corrupt, StoreUnavailable.
        """
        try:
            return newest_of(self._store.list(keys.NAMES), keys.parse_entry)
        except CannotList:
            return self.told()

    def tags(self, repo: str) -> dict[str, int]:
        """Returns the number of the newest entry of each tag of a repository, removed ones too. Corrupt, StoreUnavailable."""
        try:
            numbers = newest_of(self._store.list(keys.names(repo)), keys.parse_entry)
        except CannotList:
            numbers = self.told()
        return {tag: n for (own, tag), n in numbers.items() if own == repo}

    def told(self) -> dict[tuple[str, str], int]:
        """Returns the stored catalogue, empty where there is none; Corrupt, StoreUnavailable."""
        try:
            return catalogue.decode(self._store.get(keys.CATALOGUE, limits.CATALOGUE))
        except NotFound:
            return {}
        except (FormatError, Corrupt) as error:
            raise Corrupt(
                f"{keys.CATALOGUE} in {self._store.url} is damaged: {error}; moving a name mends it"
            ) from error

    def _follow(self, repo: str, tag: str, believed: StoredEntry | None) -> StoredEntry | None:
        low = self.confirm(repo, tag, believed) if believed is not None else 0
        return believed if believed is not None and low == believed.entry.n else self.search(repo, tag, low)

    def _log(self, repo: str, tag: str) -> LogReader:
        return LogReader(self._store, partial(keys.entry, repo, tag))

    def _mend(self, repo: str, tag: str, newest: StoredEntry) -> None:
        """Does nothing: a hint is advice, and readers leave it as it is."""


class NameLog(NameReader):
    """Moves names; `clock` gives seconds since 1970, and `signer`, if there is one, signs the entries."""

    def __init__(self, store: Writer, clock: Callable[[], float] = time.time, signer: Signer | None = None) -> None:
        super().__init__(store)
        self._writer = store
        self._clock = clock
        self.signer = signer
        self._listed: dict[tuple[str, str], int] | None = None
        """The catalogue as it was last listed here: a stored one that differs may be wrong, or newer."""

    def catalogue(self) -> dict[tuple[str, str], int]:
        found = super().catalogue()
        self._listed = dict(found)
        return found

    def mend(self, repo: str, tag: str, newest: StoredEntry) -> None:
        """Rewrites the hint of a name, unless it is just as it should be; what cannot be written stays as it is."""
        entry = newest.entry
        bundles = () if entry.version is None else self._bundles(repo, tag, entry.version)
        try:
            key = None if entry.version is None else keys.version(entry.version, entry.number)
            about = None if key is None else self._store.get(key, limits.VERSION)
        except BlockmapError as error:
            _log.debug("the hint of %s:%s goes without the record of its version: %s", repo, tag, error)
            about = None
        self._advise(keys.name_hint(repo, tag), hint.encode(Hint(entry, newest.stored, about, bundles)), limits.HINT)

    def set(
        self,
        target: NameTarget,
        draft: EntryDraft,
        before_create: Callable[[], None] = lambda: None,
        is_as_good: Callable[[Entry], bool] = lambda entry: False,
        warn: Callable[[str], object] = _log.warning,
    ) -> Entry | None:
        """Makes a name stand for a version, whatever it stood for; returns None where it does already, with the signer's
        signature if there is a signer.

        Takes the next number, again and again while others take it; calls `before_create` each time before. An entry of the
        same version with another record counts where `is_as_good` says so. What the name stood for is lost where its newest
        entry is damaged: the log goes on after it, and `warn` is told.
        Raises StoreUnavailable, StoreReadOnly, and what the first two raise.
        """
        while True:
            try:
                newest = self.newest(target.repo, target.tag)
            except Corrupt as error:
                damaged = self._damaged(target)
                if damaged is None:
                    continue
                with suppress(NameMoved):
                    made = self._create(target, *damaged, draft, before_create)
                    warn(f"{error}; what {target} stood for since then is not known, it goes on with entry {made.n}")
                    return made
                continue
            same = newest is not None and newest.version == draft.version and self._is_done(newest)
            if newest is not None and same and (newest.number == draft.number or is_as_good(newest)):
                self._mend_advice(target, newest)
                return None
            try:
                return self.append(target, newest, draft, before_create)
            except NameMoved:
                continue

    def remove(self, target: NameTarget, message: str) -> Entry:
        """Makes a name stand for nothing; its history stays. NotFound, NameMoved, StoreUnavailable, StoreReadOnly."""
        newest = self.newest(target.repo, target.tag)
        if newest is None or (newest.version is None and self._is_done(newest)):
            raise NotFound(f"there is no image {target} in {self._store.url}: see `blockmap images`")
        return self.append(target, newest, EntryDraft(None, 0, message=message))

    def fence(self, target: NameTarget) -> None:
        """Repeats the newest entry of a name, so that a writer who has fixed the number of his entry before meets it."""
        while (newest := self.newest(target.repo, target.tag)) is not None:
            again = EntryDraft(newest.version, newest.number, newest.root, newest.run, newest.oci, is_fence=True)
            try:
                self.append(target, newest, again)
            except NameMoved:
                continue
            return

    def append(
        self,
        target: NameTarget,
        expected: Entry | StoredEntry | None,
        draft: EntryDraft,
        before_create: Callable[[], None] = lambda: None,
    ) -> Entry:
        """Creates the entry after `expected` (None: the first), and after fences that repeat it; NameMoved says who was faster.

        Calls `before_create` before each attempt, when the number of the entry is fixed, and raises what it raises.
        """
        if expected is None:
            return self._create(target, 1, None, draft, before_create)
        if isinstance(expected, Entry):
            expected = StoredEntry(*self.entry(target.repo, target.tag, expected.n))
        return self._create(target, expected.entry.n + 1, entries.digest(expected.stored), draft, before_create)

    def _create(
        self,
        target: NameTarget,
        n: int,
        previous: bytes | None,
        draft: EntryDraft,
        before_create: Callable[[], None],
    ) -> Entry:
        repo, tag = target.repo, target.tag
        key, now = partial(keys.entry, repo, tag), int(self._clock())
        made = Entry(
            key(n), n, draft.version, draft.number, draft.root, draft.run, draft.oci, previous, draft.nonce or nonce(), now,
            socket.gethostname(), draft.message, draft.is_fence,
        )  # fmt: skip
        if self.signer is not None:
            made = self.signer.entry(made)
        stored = entries.encode(made)
        before_create()
        other = DenseLog(self._writer, key).append(n, stored, f"{target} was moved")
        if other is not None:
            winner = _decode(other, target, n)
            if winner.is_fence and not draft.is_fence and winner.previous == previous:
                return self.append(target, StoredEntry(winner, other), draft, before_create)
            raise NameMoved(
                f"{target} was moved meanwhile by {winner.host} at {_moment(winner.time)} "
                f"({winner.message or 'no message'}): look at what it is now, then try again"
            )
        self.mend(repo, tag, StoredEntry(made, stored))
        self._announce(repo, tag, n)
        return made

    def _damaged(self, target: NameTarget) -> tuple[int, bytes] | None:
        """Returns the number after a name's newest entry, and that entry's digest, if it is damaged; None if it is not.

        One that is too long to be read counts as empty.
        """
        log = self._log(target.repo, target.tag)
        n, stored = log.newest(), b""
        try:
            stored = log.get(n)
            _decode(stored, target, n)
        except NotFound:
            return None
        except Corrupt:
            return n + 1, entries.digest(stored)
        return None

    def _mend_advice(self, target: NameTarget, newest: Entry) -> None:
        """Rewrites the hint of a name and the catalogue where they are wrong."""
        try:
            stored = self.entry(target.repo, target.tag, newest.n)[1]
        except BlockmapError as error:
            _log.debug("the hint of %s stays as it is: %s", target, error)
            return
        self.mend(target.repo, target.tag, StoredEntry(newest, stored))
        self._announce(target.repo, target.tag, newest.n)

    def _is_done(self, entry: Entry) -> bool:
        """Returns True if an entry has the signature that it would have if it were created here."""
        return self.signer is None or self.signer.has_signed_entry(entry)

    def _mend(self, repo: str, tag: str, newest: StoredEntry) -> None:
        self.mend(repo, tag, newest)

    def _bundles(self, repo: str, tag: str, version: Digest) -> tuple[BundleRef, ...]:
        try:
            return newest_bundles(self._store, version)
        except BlockmapError as error:
            _log.debug("the bundles of version %s are those of the hint: %s", version.hex(), error)
        old = self.hint(repo, tag)
        return old.bundles if old is not None and old.entry.version == version else ()

    def _announce(self, repo: str, tag: str, n: int) -> None:
        """Writes the catalogue anew with what a name stands for now, unless it has that; makes it right where it differs from
        what was listed."""
        try:
            known = self.told()
        except BlockmapError as error:
            _log.debug("the catalogue is written anew: %s", error)
            known = {}
        if self._listed is not None and known != self._listed:
            try:
                known = self.catalogue()
            except BlockmapError as error:
                _log.debug("the catalogue is written as far as it is known: %s", error)
                known |= self._listed
        known[repo, tag] = max(n, known.get((repo, tag), 0))
        self._advise(keys.CATALOGUE, catalogue.encode(known), limits.CATALOGUE)

    def _advise(self, key: str, data: bytes, most: int) -> None:
        """Writes a hint, unless it is there already."""
        with suppress(BlockmapError):
            if self._store.get(key, most) == data:
                return
        try:
            self._writer.replace(key, data)
        except StoreError as error:
            _log.debug("%s was not written: %s", key, error)


def _decode(data: bytes, target: NameTarget, n: int) -> Entry:
    try:
        return entries.decode(data, keys.entry(target.repo, target.tag, n))
    except FormatError as error:
        raise Corrupt(f"entry {n} of {target} is damaged: {error}") from error


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
