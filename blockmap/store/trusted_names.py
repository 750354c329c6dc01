"""Finds what names stand for on a host that trusts keys."""

import logging

from blockmap.errors import Untrusted
from blockmap.format import entry as entries
from blockmap.format.entry import Entry
from blockmap.format.refs import Moment, NameEntry
from blockmap.store.base import Reader
from blockmap.store.names import NameReader, StoredEntry
from blockmap.store.signing import Trust

_log = logging.getLogger(__name__)

_MOST_SKIPPED = 64
"""Entries in a row, removals and fences, that are skipped: each costs a round trip."""


class TrustedNames(NameReader):
    """Finds what names stand for by entries that a trusted key signed; where no key is trusted, by any."""

    def __init__(self, store: Reader, trust: Trust) -> None:
        super().__init__(store)
        self._trust = trust

    def newest(self, repo: str, tag: str) -> Entry | None:
        """Returns the newest entry that counts, as `judge` does; None where there is none."""
        newest = self.newest_stored(repo, tag)
        found = self.judge(repo, tag, newest) if newest else None
        return found.entry if found else None

    def past(self, repo: str, tag: str, past: NameEntry | Moment) -> Entry | None:
        """Returns the entry that counted; None where there was none."""
        then = super().past(repo, tag, past)
        found = self.judge(repo, tag, StoredEntry(*self.entry(repo, tag, then.n))) if then else None
        return found.entry if found else None

    def judge(self, repo: str, tag: str, newest: StoredEntry) -> StoredEntry | None:
        """Returns the entry that counts, given the newest, which is that one if a trusted key signed it.

        Else, a fence counts as the entry before it, which it has to repeat; and an entry that removes the name is ignored, so
        that the one before it counts, or None if there is none. Raises Untrusted, Corrupt, StoreUnavailable.
        """
        found = newest
        for _ in range(_MOST_SKIPPED):
            entry = found.entry
            try:
                self.check(repo, tag, found)
                return found
            except Untrusted as error:
                if entry.version is not None and not entry.is_fence:
                    raise
                if not entry.is_fence:
                    _log.warning("the removal of %s:%s is ignored: %s", repo, tag, error)
            if entry.n == 1:
                return None
            found = StoredEntry(*self.entry(repo, tag, entry.n - 1))
            if entry.is_fence and not _repeats(entry, found):
                raise Untrusted(
                    f"entry {entry.n} of {repo}:{tag} is not signed, and is no fence, since it does not repeat the one before it: "
                    "have somebody with a trusted key import the image again with --sign"
                )
        raise Untrusted(
            f"{repo}:{tag} has {_MOST_SKIPPED} entries in a row or more that remove or repeat it and that no trusted key signed: "
            "have somebody with a trusted key import the image again with --sign"
        )

    def is_trusted(self, repo: str, tag: str, found: StoredEntry) -> bool:
        """Returns True if an entry would count if it were the newest."""
        try:
            self.check(repo, tag, found)
        except Untrusted:
            return False
        return True

    def check(self, repo: str, tag: str, found: StoredEntry) -> None:
        """Raises Untrusted where keys are trusted and none of them signed an entry."""
        self._trust.check_entry(f"entry {found.entry.n} of {repo}:{tag}", found.stored, found.entry.signature)


def _repeats(fence: Entry, before: StoredEntry) -> bool:
    """Returns True if a fence continues an entry and says what that one says."""
    same = (fence.version, fence.number) == (before.entry.version, before.entry.number)
    return same and fence.previous == entries.digest(before.stored)
