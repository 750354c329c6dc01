"""Lists the catalogue as clients see it: names that stand for something, read again from a remote store every 30 s at most.

No open depends on it, so it may be a little old: if the store does not answer in time, the last listing serves. Whoever asks
before there is one waits for it, as long as a read would; if none comes, the names that this host has opened serve.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from blockmap.errors import BlockmapError, Corrupt, FormatError, NotFound, StoreUnavailable, Untrusted
from blockmap.format import entry as entries
from blockmap.format import keys
from blockmap.format.entry import Entry
from blockmap.format.refs import is_name
from blockmap.origin.outage_policy import DEFAULT, OutagePolicy
from blockmap.origin.records import RecordCache
from blockmap.store.base import Reader
from blockmap.store.concurrent import each, spawn
from blockmap.store.names import StoredEntry
from blockmap.store.resolver import check_presence
from blockmap.store.signing import Trust
from blockmap.store.trusted_names import TrustedNames

_log = logging.getLogger(__name__)

LOCAL_SECONDS = 1.0
REMOTE_SECONDS = 30.0
"""Seconds for which a listing of a remote store is used again."""

Listed = list[tuple[str, str]]
"""Export names, each with a description."""


class Listing:
    """Lists what one store has; safe to share between threads."""

    def __init__(
        self,
        store: Reader,
        known: RecordCache,
        answer_seconds: float,
        policy: OutagePolicy = DEFAULT,
        clock: Callable[[], float] = time.monotonic,
        trust: Trust | None = None,
    ) -> None:
        """`policy` says how long the first listing is waited for, `answer_seconds` each later one; `trust` has the keys of
        which one must have signed what is listed."""
        self._store = store
        self._known = known
        self._answer_seconds = answer_seconds
        self._first_seconds = max(policy.wait_s, answer_seconds)
        self._clock = clock
        self._names = TrustedNames(store, trust or Trust())
        self._lock = threading.Lock()  # guards what follows; not held across I/O
        self._listed: Listed | None = None
        self._listed_at = float("-inf")
        self._refresh: Future[Listed] | None = None
        self._entries: dict[tuple[str, str], Entry] = {}
        """The newest entries, which never change."""

    def names(self) -> Listed:
        """Returns the catalogue; StoreError or Corrupt if the store does not answer, or not well, and nothing is known of it."""
        fresh = LOCAL_SECONDS if self._store.local else REMOTE_SECONDS
        with self._lock:
            old = self._listed
            if old is not None and self._clock() - self._listed_at < fresh:
                return old
            if self._refresh is None or self._refresh.done():
                self._refresh = spawn(self._update)
            refresh = self._refresh
        try:
            return refresh.result(self._first_seconds if old is None else self._answer_seconds)
        except (TimeoutError, BlockmapError) as error:
            old = old or self._kept()
            if not old:
                raise error if isinstance(error, BlockmapError) else self._overdue() from None
            _log.warning("%s cannot be listed, earlier names are served: %s", self._store.url, error or "no answer")
            return old

    def _overdue(self) -> StoreUnavailable:
        return StoreUnavailable(f"{self._store.url} did not list its names within {self._first_seconds:g} s")

    def _update(self) -> Listed:
        asked_at = self._clock()
        numbers = self._names.catalogue()
        names = sorted(filter(lambda name: is_name(*name), numbers))
        if not names:
            check_presence(self._store)
        found = each(lambda name: self._entry(*name, numbers[name]), names)
        present = {name: entry for name, entry in zip(names, found, strict=True) if entry is not None}
        listed = _described(present)
        with self._lock:
            self._listed, self._listed_at = listed, asked_at
            self._entries = present
        return listed

    def _entry(self, repo: str, tag: str, n: int) -> Entry | None:
        known = self._entries.get((repo, tag))
        if known is not None and known.n == n:
            return known
        try:
            found = self._names.judge(repo, tag, StoredEntry(*self._names.entry(repo, tag, n)))
            return None if found is None else found.entry
        except Untrusted as error:
            _log.debug("%s:%s is left out of the catalogue: %s", repo, tag, error)
            return None
        except (Corrupt, NotFound) as error:
            _log.warning("%s:%s is left out of the catalogue: %s", repo, tag, error)
            return None

    def _kept(self) -> Listed:
        """Returns the names that this host has opened."""
        found = {}
        for repo, tag, n, stored in self._known.names():
            with suppress(FormatError, Untrusted):  # advice, as all that this host has noted
                entry = entries.decode(stored, keys.entry(repo, tag, n))
                self._names.check(repo, tag, StoredEntry(entry, stored))
                found[repo, tag] = entry
        return _described(found)


def _described(newest: dict[tuple[str, str], Entry]) -> Listed:
    return [
        (f"{repo}:{tag}", f"version {entry.version.hex()[:12]}, entry {entry.n}")
        for (repo, tag), entry in newest.items()
        if entry.version is not None
    ]
