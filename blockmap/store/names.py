"""Names as logs of create-only entries: moving a name is creating its next entry.

Entries are numbered densely from 1, so the newest is found without a listing: from the entry that the name's hint has, or
from doubling numbers and bisection. A hint is advice: what it says stands only once the log was asked for that entry and,
at the same time, for the next. Of two writers of one number exactly one wins, and the other is told who did.
"""

import logging
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from blockmap.errors import (
    AlreadyExists,
    BlockmapError,
    CannotList,
    Corrupt,
    FormatError,
    NameMoved,
    NotFound,
    StoreError,
    StoreUnavailable,
)
from blockmap.format import catalogue, hint, keys
from blockmap.format import entry as entries
from blockmap.format.digest import Digest
from blockmap.format.entry import Entry
from blockmap.format.hint import BundleRef, Hint
from blockmap.format.node import Placement
from blockmap.format.version import NodeRun
from blockmap.store.base import Reader, Writer
from blockmap.store.bundles import newest_bundles
from blockmap.store.concurrent import spawn

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry of a name, and its stored form."""

    entry: Entry
    stored: bytes


class NameReader:
    """Finds what names stand for."""

    def __init__(self, store: Reader) -> None:
        self._store = store

    def newest(self, repo: str, tag: str) -> Entry | None:
        """The newest entry of a name, which may remove it; None where there is none. Corrupt, StoreUnavailable."""
        hinted = self.hint(repo, tag)
        found = self._follow(repo, tag, StoredEntry(hinted.entry, hinted.stored) if hinted else None)
        if found is not None and (hinted is None or hinted.stored != found.stored):
            self._mend(repo, tag, found)
        return found.entry if found else None

    def hint(self, repo: str, tag: str) -> Hint | None:
        """What the hint of a name says, which may be wrong; None where it is absent or damaged."""
        try:
            return hint.decode(self._store.get(keys.name_hint(repo, tag)), repo, tag)
        except NotFound:
            return None
        except (StoreError, FormatError) as error:
            _log.warning("the hint of %s:%s is not used: %s", repo, tag, error)
            return None

    def confirm(self, repo: str, tag: str, believed: StoredEntry) -> int:
        """Asks for an entry that is believed to be the newest, and for the next, at once.

        Its own number where it is; one more where the next is there too; 0 where the log has another in its place.
        StoreUnavailable.
        """
        n = believed.entry.n
        more = spawn(lambda: self._exists(repo, tag, n + 1))
        try:
            stands = self._store.get(keys.entry(repo, tag, n)) == believed.stored
        except NotFound:
            stands = False
        moved = more.result()
        if not stands:
            _log.info("entry %d of %s:%s is not what it was said to be: looking for the newest", n, repo, tag)
            return 0
        return n + moved

    def search(self, repo: str, tag: str, low: int) -> StoredEntry | None:
        """The newest entry, where number `low` is known to be there (0: none is); Corrupt, StoreUnavailable."""
        step = 1
        while self._exists(repo, tag, low + step):
            low, step = low + step, step * 2
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            if self._exists(repo, tag, middle):
                low = middle
            else:
                high = middle
        return StoredEntry(*self.entry(repo, tag, low)) if low else None

    def entry(self, repo: str, tag: str, n: int) -> tuple[Entry, bytes]:
        """Entry `n` of a name and its stored form; NotFound, Corrupt."""
        key = keys.entry(repo, tag, n)
        data = self._store.get(key)
        try:
            return entries.decode(data, key), data
        except FormatError as error:
            raise Corrupt(f"entry {n} of {repo}:{tag} is damaged: {error}") from error

    def history(self, repo: str, tag: str) -> Iterator[Entry]:
        """All entries, newest first; Corrupt where one does not continue the one before it."""
        newest = self.newest(repo, tag)
        expected: bytes | None = None
        for n in range(newest.n if newest else 0, 0, -1):
            entry, data = self.entry(repo, tag, n)
            if entry.n != n or (expected is not None and entries.digest(data) != expected):
                raise Corrupt(f"entry {n} of {repo}:{tag} is not the one that entry {n + 1} continues")
            expected = entry.previous
            yield entry

    def catalogue(self) -> dict[tuple[str, str], int]:
        """The number of the newest entry of every name, by repository and tag; removed names are among them.

        Where the engine cannot list it is what the writers say in one object. Corrupt, StoreUnavailable.
        """
        try:
            listed = self._store.list(keys.NAMES)
        except CannotList:
            return self._told()
        found: dict[tuple[str, str], int] = {}
        for key in listed:
            parsed = keys.parse_entry(key)
            if parsed is not None:
                repo, tag, n = parsed
                found[repo, tag] = max(n, found.get((repo, tag), 0))
        return found

    def _told(self) -> dict[tuple[str, str], int]:
        try:
            return catalogue.decode(self._store.get(keys.CATALOGUE))
        except NotFound:
            return {}
        except FormatError as error:
            raise Corrupt(
                f"{keys.CATALOGUE} in {self._store.url} is damaged: {error}; moving a name mends it"
            ) from error

    def _follow(self, repo: str, tag: str, believed: StoredEntry | None) -> StoredEntry | None:
        low = self.confirm(repo, tag, believed) if believed is not None else 0
        return believed if believed is not None and low == believed.entry.n else self.search(repo, tag, low)

    def _exists(self, repo: str, tag: str, n: int) -> bool:
        return self._store.exists(keys.entry(repo, tag, n))

    def _mend(self, repo: str, tag: str, newest: StoredEntry) -> None:
        """Advice: those who only read leave a hint as it is."""


class NameLog(NameReader):
    """Moves names; `clock` gives seconds since 1970."""

    def __init__(self, store: Writer, clock: Callable[[], float] = time.time) -> None:
        super().__init__(store)
        self._writer = store
        self._clock = clock
        self._listed: dict[tuple[str, str], int] = {}
        """The catalogue as it was last listed here: what an object that two writers overwrote at once has lost."""

    def catalogue(self) -> dict[tuple[str, str], int]:
        found = super().catalogue()
        self._listed = dict(found)
        return found

    def mend(self, repo: str, tag: str, newest: StoredEntry) -> None:
        """Rewrites the hint of a name that was found behind, or whose version has a new bundle.

        What cannot be written stays as it is.
        """
        entry = newest.entry
        bundles = () if entry.version is None else self._bundles(repo, tag, entry.version)
        try:
            about = None if entry.version is None else self._store.get(keys.version(entry.version, entry.number))
        except BlockmapError as error:
            _log.debug("the hint of %s:%s goes without the record of its version: %s", repo, tag, error)
            about = None
        self._advise(keys.name_hint(repo, tag), hint.encode(Hint(entry, newest.stored, about, bundles)))

    def set(
        self,
        repo: str,
        tag: str,
        version: Digest,
        number: int,
        root: Placement | None,
        run: NodeRun | None,
        oci: bytes | None,
        message: str = "",
    ) -> Entry | None:
        """Makes a name stand for a version, whatever it stood for; None where it does already.

        Takes the next number, again and again while others take it. Raises StoreUnavailable, StoreReadOnly.
        """
        while True:
            newest = self.newest(repo, tag)
            if newest is not None and (newest.version, newest.number) == (version, number):
                return None
            try:
                return self.append(repo, tag, newest, version, number, root, run, oci, message)
            except NameMoved:
                continue

    def append(
        self,
        repo: str,
        tag: str,
        expected: Entry | None,
        version: Digest | None,
        number: int,
        root: Placement | None = None,
        run: NodeRun | None = None,
        oci: bytes | None = None,
        message: str = "",
    ) -> Entry:
        """Creates the entry after `expected` (None: the first); NameMoved, which says who was faster."""
        n = expected.n + 1 if expected else 1
        key = keys.entry(repo, tag, n)
        previous = entries.digest(self.entry(repo, tag, n - 1)[1]) if expected else None
        nonce = secrets.token_hex(16)
        now = int(self._clock())
        made = Entry(key, n, version, number, root, run, oci, previous, nonce, now, socket.gethostname(), message)
        stored = entries.encode(made)
        try:
            self._writer.create(key, [stored])
        except (AlreadyExists, StoreUnavailable) as error:
            # The answer may be lost while the entry stands: whose nonce it has says who made it.
            try:
                stands = self.entry(repo, tag, n)[0]
            except NotFound:
                raise error from None
            except StoreUnavailable as second:
                raise StoreUnavailable(
                    f"whether {repo}:{tag} was moved is not known, since the store stopped answering: look at the name "
                    f"when it answers again ({second})"
                ) from error
            if stands.nonce != nonce:
                raise NameMoved(
                    f"{repo}:{tag} was moved meanwhile by {stands.host} at {_moment(stands.time)} "
                    f"({stands.message or 'no message'}): "
                    "look at what it is now, then try again"
                ) from error
        self.mend(repo, tag, StoredEntry(made, stored))
        self._announce(repo, tag, n)
        return made

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
        """Writes the catalogue anew with a name that has just been moved."""
        try:
            known = self._told()
        except BlockmapError as error:
            _log.debug("the catalogue is written anew: %s", error)
            known = {}
        for each, number in (*self._listed.items(), ((repo, tag), n)):
            known[each] = max(number, known.get(each, 0))
        self._advise(keys.CATALOGUE, catalogue.encode(known))

    def _advise(self, key: str, data: bytes) -> None:
        try:
            self._writer.replace(key, data)
        except StoreError as error:
            _log.debug("%s was not written: %s", key, error)


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
