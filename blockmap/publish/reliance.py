"""What a writer relies on, watched from before it is read until a name needs it: collections may delete it meanwhile."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

from blockmap.errors import Collected, Corrupt, NotFound, Untrusted
from blockmap.format import keys
from blockmap.format.entry import Entry
from blockmap.format.refs import Reference
from blockmap.format.version import Version
from blockmap.publish.object_writer import put_signed
from blockmap.store.base import Writer
from blockmap.store.collections import CollectionReader, CollectionState
from blockmap.store.concurrent import each, spawn
from blockmap.store.names import EntryDraft, NameLog, NameTarget, StoredEntry
from blockmap.store.packs import pack_key
from blockmap.store.repository import VERSION_ATTEMPTS, Repository
from blockmap.store.resolver import find_version
from blockmap.store.signing import Signer, Trust
from blockmap.store.walk import packs_below

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExpectedEntry:
    """What a name must stand for when it is moved."""

    stored: StoredEntry | None
    """Its newest entry, but for fences that repeat it; None where it has none."""


class Reliance:
    """Names a version whose objects were stored or relied on since `seen`, if none of them may have been deleted since."""

    def __init__(
        self,
        store: Writer,
        names: NameLog,
        seen: CollectionState,
        warn: Callable[[str], object] = _log.warning,
    ) -> None:
        """`warn` is told of damage that a name got over."""
        self._repository = Repository(store)
        self._names = names
        self._collections = CollectionReader(store)
        self.seen = seen
        """What the log of collections said when it was last checked."""
        self._warn = warn
        self._ahead: Future[CollectionState] | None = None

    def check_ahead(self, version: Version, number: Future[int], before_create: Callable[[], None]) -> None:
        """Begins the check of the first attempt of `name`, whose entry has its number already, while the version's record is
        being stored; `number` is to be that of the record."""
        self._ahead = spawn(lambda: self._check(before_create, lambda: self._used(version, number.result())))

    def name(
        self,
        target: NameTarget,
        version: Version,
        draft: EntryDraft,
        before_create: Callable[[], None] = lambda: None,
        after: ExpectedEntry | None = None,
        is_as_good: Callable[[Entry], bool] = lambda entry: False,
    ) -> Entry | None:
        """Makes a name stand for a version: whatever it stands for, as `NameLog.set` does, or only after what is expected,
        as `NameLog.append` does. `is_as_good` is that of `NameLog.set`. NameMoved, Collected.

        The number of the entry is fixed before the log of collections is asked, so a collection that begins to delete later
        fences that number off before it looks at what the name stands for. It cannot fence a log that is not there, so who
        made a log looks again.
        """

        def used() -> set[str]:
            return self._used(version, draft.number)

        def check() -> None:
            ahead, self._ahead = self._ahead, None
            self.seen = self._check(before_create, used) if ahead is None else ahead.result()

        if after is None:
            entry = self._names.set(target, draft, check, is_as_good, self._warn)
        else:
            entry = self._names.append(target, after.stored, draft, check)
        if entry is not None and entry.n == 1:
            try:
                self._collections.check(self.seen, used)
            except Collected:
                self._names.remove(target, "what it stands for was collected meanwhile")
                raise
        return entry

    def _check(self, before_create: Callable[[], None], used: Callable[[], set[str]]) -> CollectionState:
        """Checks at once what must hold before an entry is created; returns what the log of collections says."""
        before = spawn(before_create)
        seen = self._collections.check(self.seen, used)
        before.result()
        return seen

    def _used(self, version: Version, number: int) -> set[str]:
        """Returns the keys of what a version consists of; Collected."""
        try:
            return _keys_of(self._repository, version, number)
        except (NotFound, Corrupt) as error:
            raise Collected(f"what this relied on has gone from the store: repeat the command ({error})") from error


def _keys_of(repository: Repository, version: Version, number: int) -> set[str]:
    """Returns the keys of what a version consists of, given the number of its record; NotFound, Corrupt."""
    packs = packs_below((version.root, version.extra), repository.packs.nodes)
    return {keys.version(version.name, number), *map(pack_key, packs)}


def still_stands(repository: Repository, entry: Entry) -> bool:
    """Returns True if nothing of what an entry's version consists of is deleted, or about to be. Raises StoreUnavailable."""
    store = repository.store
    try:
        assert entry.version is not None
        used = _keys_of(repository, repository.version(entry.version, entry.number), entry.number)
    except (NotFound, Corrupt):
        return False
    return not used & CollectionReader(store).state().condemned and all(each(store.exists, used))


def tag_version(
    store: Writer,
    reference: Reference,
    target: NameTarget,
    message: str,
    trust: Trust | None = None,
    signer: Signer | None = None,
) -> tuple[EntryDraft, Entry | None]:
    """Makes a name stand for what `reference` stands for; returns None in place of the entry where it does already.

    With a signer, the entry is signed, and the version if it is not. Raises NotFound, Untrusted, Collected, StoreError.
    """
    seen = CollectionReader(store).state()
    repository, names = Repository(store, trust), NameLog(store, signer=signer)
    found = find_version(repository, reference)
    for number in range(1, VERSION_ATTEMPTS + 1):
        with suppress(NotFound, Corrupt, Untrusted):
            record = repository.version_at(found.name, number)
            if signer is not None:
                number = put_signed(store, record, number, signer, seen.retired_number(found.name))
            draft = EntryDraft.of(record, number, message)
            return draft, Reliance(store, names, seen).name(target, record, draft)
    raise NotFound(f"the record of version {found.name.hex()} has gone from {store.url}")
