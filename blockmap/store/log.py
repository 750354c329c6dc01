"""Dense logs: create-only entries numbered from 1 without gaps, so that the newest is found without a listing.

Of two writers of one number exactly one wins. An answer may be lost while the entry stands, so a writer makes its entry
unlike any other (it holds a nonce) and reads back whose entry stands.
"""

import secrets
from collections.abc import Callable, Iterable
from typing import TypeVar

from blockmap.errors import AlreadyExists, NotFound, StoreUnavailable
from blockmap.store import limits
from blockmap.store.base import Reader, Writer

Log = TypeVar("Log")


def nonce() -> str:
    """Returns random text that makes an entry unlike any other."""
    return secrets.token_hex(16)


def newest_of(listed: Iterable[str], parse: Callable[[str], tuple[Log, int] | None]) -> dict[Log, int]:
    """Returns the number of the newest entry of each log among listed keys; `parse` gives None for other keys."""
    found: dict[Log, int] = {}
    for log, n in filter(None, map(parse, listed)):
        found[log] = max(n, found.get(log, 0))
    return found


class LogReader:
    """Reads one log; `key` gives the key of each number, and `most` bytes are what an entry may have."""

    def __init__(self, store: Reader, key: Callable[[int], str], most: int = limits.ENTRY) -> None:
        self._store = store
        self._key = key
        self._most = most

    def get(self, n: int) -> bytes:
        """Returns entry `n` as stored; NotFound, Corrupt where it is too long."""
        return self._store.get(self._key(n), self._most)

    def exists(self, n: int) -> bool:
        return self._store.exists(self._key(n))

    def newest(self, low: int = 0) -> int:
        """Returns the number of the newest entry, where `low` is known to be there; 0 where there is none.

        Asks for doubling numbers and then bisects, so the cost grows with the logarithm of what was added since `low`.
        """
        step = 1
        while self.exists(low + step):
            low, step = low + step, step * 2
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            if self.exists(middle):
                low = middle
            else:
                high = middle
        return low


class DenseLog(LogReader):
    """Appends to one log."""

    def __init__(self, store: Writer, key: Callable[[int], str], most: int = limits.ENTRY) -> None:
        super().__init__(store, key, most)
        self._writer = store

    def append(self, n: int, stored: bytes, what: str) -> bytes | None:
        """Creates entry `n`, which must hold a nonce; returns None, or the entry of another who was faster, as stored.

        `what` says, in the past tense, what the entry does: for the message of a StoreUnavailable after which nobody knows
        whether it was created.
        """
        try:
            self._writer.create(self._key(n), [stored])
        except (AlreadyExists, StoreUnavailable) as error:
            try:
                stands = self.get(n)
            except NotFound:
                raise error from None
            except StoreUnavailable as second:
                raise StoreUnavailable(
                    f"whether {what} is not known, since the store stopped answering: look again when it answers ({second})"
                ) from error
            return stands if stands != stored else None
        return None

    def add(self, stored: bytes, what: str) -> int:
        """Creates the next entry, whatever others add meanwhile, as `append` does; returns its number."""
        n = self.newest() + 1
        while self.append(n, stored, what) is not None:
            n += 1
        return n
