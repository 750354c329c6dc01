"""The log of profiles of each repository and label, and the bundles made from them.

Both are create-only. Numbers of profiles are dense from 1, as those of a name's entries; a bundle has the number of its
profile, and may be missing or be made later. The hints of names say which bundles are newest.
"""

import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from blockmap.errors import BlockmapError, Corrupt, FormatError
from blockmap.format import keys
from blockmap.format import profile as profiles
from blockmap.format.digest import Digest
from blockmap.format.profile import Profile
from blockmap.store import limits
from blockmap.store.base import Reader, Writer
from blockmap.store.log import DenseLog, LogReader, newest_of, nonce
from blockmap.store.names import NameLog, StoredEntry
from blockmap.store.packs import compress, expand

_log = logging.getLogger(__name__)

_LAST = 10
"""Profiles that are searched for one of a certain host: each costs a request."""


class ProfileReader:
    """Finds profiles."""

    def __init__(self, store: Reader) -> None:
        self._store = store

    def newest(self, repo: str, label: str) -> Profile | None:
        """Returns the newest profile; None where there is none. Corrupt, StoreUnavailable."""
        n = self.number(repo, label)
        return self.get(repo, label, n) if n else None

    def number(self, repo: str, label: str) -> int:
        """Returns the number of the newest profile; 0 where there is none."""
        return LogReader(self._store, partial(keys.profile, repo, label)).newest()

    def get(self, repo: str, label: str, n: int) -> Profile:
        """Returns profile `n`; NotFound, Corrupt."""
        try:
            return profiles.decode(
                self._store.get(keys.profile(repo, label, n), limits.PROFILE), repo, label, n, expand
            )
        except FormatError as error:
            raise Corrupt(f"profile {n} of {repo}+{label} is damaged: {error}") from error

    def latest_by(self, host: str, repo: str, label: str) -> Profile | None:
        """Returns the newest profile that a host published, among the last few; damaged ones are passed over."""
        newest = self.number(repo, label)
        for n in range(newest, max(newest - _LAST, 0), -1):
            with suppress(Corrupt):
                found = self.get(repo, label, n)
                if found.host == host:
                    return found
        return None

    def labels(self, repo: str) -> dict[str, int]:
        """Returns the number of the newest profile of each label of a repository; CannotList, StoreUnavailable."""
        return {label: n for (_, label), n in self._listed(keys.profiles(repo)).items()}

    def all(self) -> dict[tuple[str, str], int]:
        """Returns the number of the newest profile of each repository and label; CannotList, StoreUnavailable."""
        return self._listed(keys.PROFILES)

    def _listed(self, prefix: str) -> dict[tuple[str, str], int]:
        return dict(sorted(newest_of(self._store.list(prefix), keys.parse_profile).items()))


class ProfileLog(ProfileReader):
    """Publishes profiles; `clock` gives seconds since 1970."""

    def __init__(self, store: Writer, clock: Callable[[], float] = time.time) -> None:
        super().__init__(store)
        self._writer = store
        self._clock = clock

    def append(self, made: Profile) -> Profile:
        """Creates the profile under the next number that nobody has taken, and returns it as it is stored.

        StoreReadOnly, StoreUnavailable.
        """
        log = DenseLog(self._writer, partial(keys.profile, made.repo, made.label), limits.PROFILE)
        n = 0
        while True:
            n = log.newest(n) + 1
            signed = replace(made, n=n, host=socket.gethostname(), time=int(self._clock()), nonce=nonce())
            what = f"what was learnt about {made.repo}+{made.label} was published"
            if log.append(n, profiles.encode(signed, compress), what) is None:
                return signed

    def advise(self, repo: str, version: Digest) -> int:
        """Rewrites the hints of all names of a repository that stand for a version, so that they refer to its bundles.

        Returns how many names there are.
        """
        log = NameLog(self._writer)
        advised = 0
        for (other, tag), n in log.catalogue().items():
            if other != repo:
                continue
            try:
                entry, stored = log.entry(repo, tag, n)
            except BlockmapError as error:
                _log.warning("the hint of %s:%s stays as it is: %s", repo, tag, error)
                continue
            if entry.version == version:
                log.mend(repo, tag, StoredEntry(entry, stored))
                advised += 1
        return advised
