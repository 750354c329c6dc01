"""The log of profiles of each repository and label, and the bundles made from them.

Both are create-only. Numbers of profiles are dense from 1, as those of a name's entries; a bundle has the number of its
profile, and may be missing or be made later. Which bundles are newest is said in the hints of names.
"""

import logging
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from blockmap.errors import AlreadyExists, BlockmapError, Corrupt, FormatError, NotFound, StoreUnavailable
from blockmap.format import keys
from blockmap.format import profile as profiles
from blockmap.format.digest import Digest
from blockmap.format.profile import Profile
from blockmap.store.base import Buffer, Reader, Writer
from blockmap.store.names import NameLog, StoredEntry
from blockmap.store.repository import Publication

_log = logging.getLogger(__name__)


_LAST = 10


class ProfileReader:
    """Finds profiles."""

    def __init__(self, store: Reader) -> None:
        self._store = store

    def newest(self, repo: str, label: str) -> Profile | None:
        """The newest profile; None where there is none. Corrupt, StoreUnavailable."""
        n = self.number(repo, label)
        return self.get(repo, label, n) if n else None

    def number(self, repo: str, label: str, low: int = 0) -> int:
        """The number of the newest profile, where number `low` is known to be there; 0 where there is none."""
        step = 1
        while self._exists(repo, label, low + step):
            low, step = low + step, step * 2
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            if self._exists(repo, label, middle):
                low = middle
            else:
                high = middle
        return low

    def get(self, repo: str, label: str, n: int) -> Profile:
        """Profile `n`; NotFound, Corrupt."""
        try:
            return profiles.decode(self._store.get(keys.profile(repo, label, n)), repo, label, n)
        except FormatError as error:
            raise Corrupt(f"profile {n} of {repo}+{label} is damaged: {error}") from error

    def latest_by(self, host: str, repo: str, label: str) -> Profile | None:
        """The newest profile that a host published, among the last few; damaged ones are passed over."""
        newest = self.number(repo, label)
        for n in range(newest, max(newest - _LAST, 0), -1):
            with suppress(Corrupt):
                found = self.get(repo, label, n)
                if found.host == host:
                    return found
        return None

    def labels(self, repo: str) -> dict[str, int]:
        """The number of the newest profile of each label of a repository; CannotList, StoreUnavailable."""
        return {label: n for (_, label), n in self._listed(keys.profiles(repo)).items()}

    def all(self) -> dict[tuple[str, str], int]:
        """The number of the newest profile of each repository and label; CannotList, StoreUnavailable."""
        return self._listed(keys.PROFILES)

    def has_bundle(self, version: Digest, label: str, n: int) -> bool:
        return self._store.exists(keys.bundle(version, label, n))

    def _listed(self, prefix: str) -> dict[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = {}
        for key in self._store.list(prefix):
            parsed = keys.parse_profile(key)
            if parsed is not None:
                repo, label, n = parsed
                found[repo, label] = max(n, found.get((repo, label), 0))
        return dict(sorted(found.items()))

    def _exists(self, repo: str, label: str, n: int) -> bool:
        return self._store.exists(keys.profile(repo, label, n))


class ProfileLog(ProfileReader):
    """Publishes profiles and bundles; `clock` gives seconds since 1970."""

    def __init__(self, store: Writer, clock: Callable[[], float] = time.time) -> None:
        super().__init__(store)
        self._writer = store
        self._clock = clock

    def append(self, made: Profile) -> Profile:
        """Creates the profile under the next number that nobody has taken, and returns it as it is stored.

        StoreReadOnly, StoreUnavailable.
        """
        n = self.number(made.repo, made.label) + 1
        while True:
            signed = replace(made, n=n, host=socket.gethostname(), time=int(self._clock()), nonce=secrets.token_hex(16))
            try:
                self._writer.create(keys.profile(made.repo, made.label, n), [profiles.encode(signed)])
            except (AlreadyExists, StoreUnavailable) as error:
                # The answer may be lost while the profile stands: whose nonce it has says who made it.
                try:
                    stands = self.get(made.repo, made.label, n)
                except NotFound:
                    raise error from None
                if stands.nonce != signed.nonce:
                    n = self.number(made.repo, made.label, n) + 1
                    continue
            return signed

    def put_bundle(self, version: Digest, label: str, n: int, parts: Sequence[Buffer]) -> bool:
        """Stores the bundle of profile `n` on a version; False where it has one already."""
        return Publication(self._writer).put(keys.bundle(version, label, n), parts)

    def advise(self, repo: str, version: Digest) -> int:
        """Tells the hints of every name of a repository that stands for a version about its bundles; how many there are."""
        log = NameLog(self._writer)
        told = 0
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
                told += 1
        return told
