"""Names as logs of create-only entries: moving a name is creating its next entry.

Entries are numbered densely from 1, so the newest is found without a listing: from the number that the name's hint has,
or from doubling numbers and bisection. A hint is advice; no entry is believed in because of one. Of two writers of one
number exactly one wins, and the other is told who did.
"""

import logging
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from blockmap.errors import AlreadyExists, Corrupt, FormatError, NameMoved, NotFound, StoreError, StoreUnavailable
from blockmap.format import entry as entries
from blockmap.format import keys
from blockmap.format.digest import Digest
from blockmap.format.entry import Entry, Run
from blockmap.format.node import Placement
from blockmap.store.base import Reader, Writer

_log = logging.getLogger(__name__)


class NameReader:
    """Finds what names stand for."""

    def __init__(self, store: Reader) -> None:
        self._store = store

    def newest(self, repo: str, tag: str) -> Entry | None:
        """The newest entry of a name, which may remove it; None where there is none. Corrupt, StoreUnavailable."""
        hinted = self._hint(repo, tag)
        low = hinted if hinted and self._exists(repo, tag, hinted) else 0
        if low != hinted:
            _log.warning("the hint of %s:%s names entry %d, which is not there; it is not used", repo, tag, hinted)
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
        if low == 0:
            return None
        found = self.entry(repo, tag, low)[0]
        if low != hinted:
            self._put_hint(repo, tag, low)
        return found

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
        """The number of the newest entry of every name, by repository and tag; removed names are among them."""
        found: dict[tuple[str, str], int] = {}
        for key in self._store.list(keys.NAMES):
            parsed = keys.parse_entry(key)
            if parsed is not None:
                repo, tag, n = parsed
                found[repo, tag] = max(n, found.get((repo, tag), 0))
        return found

    def _exists(self, repo: str, tag: str, n: int) -> bool:
        return self._store.exists(keys.entry(repo, tag, n))

    def _hint(self, repo: str, tag: str) -> int:
        try:
            text = self._store.get(keys.name_hint(repo, tag))
        except NotFound:
            return 0
        except StoreError as error:
            _log.warning("the hint of %s:%s is not used: %s", repo, tag, error)
            return 0
        if len(text) > 16 or not text.isdigit():
            _log.warning("the hint of %s:%s is damaged; it is not used", repo, tag)
            return 0
        return int(text)

    def _put_hint(self, repo: str, tag: str, n: int) -> None:
        """Advice: those who only read leave a hint as it is."""


class NameLog(NameReader):
    """Moves names; `clock` gives seconds since 1970."""

    def __init__(self, store: Writer, clock: Callable[[], float] = time.time) -> None:
        super().__init__(store)
        self._writer = store
        self._clock = clock

    def set(
        self,
        repo: str,
        tag: str,
        version: Digest,
        number: int,
        root: Placement | None,
        run: Run | None,
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
        run: Run | None = None,
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
        try:
            self._writer.create(key, [entries.encode(made)])
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
        self._put_hint(repo, tag, n)
        return made

    def _put_hint(self, repo: str, tag: str, n: int) -> None:
        try:
            self._writer.replace(keys.name_hint(repo, tag), str(n).encode())
        except StoreError as error:
            _log.debug("the hint of %s:%s was not written: %s", repo, tag, error)


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
