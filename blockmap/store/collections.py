"""The log of garbage collections, as writers and collectors see it.

Its entries follow each other as `condemn`, `sweep`, `done`, and so on: at most one collection is open. Who writes reads it
before reading what is in the store, and again once the number of the entry that is to name what it wrote is fixed: a
collection that has begun to delete since may have taken what it relied on. What is only condemned may be relied on, since a
collection looks again before it deletes.
"""

import logging
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from blockmap.errors import Collected, Corrupt, FormatError, NotFound
from blockmap.format import collection, keys
from blockmap.format.collection import CollectionStep, StepKind
from blockmap.format.digest import Digest
from blockmap.store import limits
from blockmap.store.base import Pruner, Reader, Writer
from blockmap.store.log import DenseLog, LogReader, nonce

_log = logging.getLogger(__name__)

_LOOK_BACK = 9
"""Entries in which the end of the collection before is looked for: three collections."""


@dataclass(frozen=True, slots=True)
class CollectionState:
    """What the log of collections said at one moment."""

    newest: int
    """The number of its newest entry; 0 if it has none."""
    condemnation: CollectionStep | None = None
    """The condemnation that is open."""
    sweeping: bool = False
    """True if its objects are being deleted."""
    condemned: frozenset[str] = frozenset()
    """Keys that it lists."""
    retired: Mapping[Digest, int] | None = None
    """By version, the highest number of a record that was deleted."""

    def retired_number(self, version: Digest) -> int:
        """Returns the highest number of a version's record that must not be used again; 0 if there is none."""
        condemned = [
            found[1] for found in map(keys.parse_version, self.condemned) if found is not None and found[0] == version
        ]
        return max([*condemned, (self.retired or {}).get(version, 0)])


def store_time(store: Pruner) -> float:
    """Returns the time by the store's clock, in seconds since 1970: hosts have clocks of their own."""
    store.replace(keys.CLOCK, b"")
    return store.modified(keys.CLOCK)


class CollectionReader:
    """Reads the log of collections."""

    def __init__(self, store: Reader) -> None:
        self._log = LogReader(store, keys.collection, limits.COLLECTION)

    def step(self, n: int) -> CollectionStep:
        """Returns entry `n`; NotFound, Corrupt."""
        try:
            return collection.decode(self._log.get(n), n)
        except FormatError as error:
            raise Corrupt(f"{keys.collection(n)} is damaged: {error}") from error

    def state(self) -> CollectionState:
        """Returns what the log says now; Corrupt, StoreUnavailable."""
        return self._state(self._log.newest())

    def check(self, seen: CollectionState, used: Callable[[], Collection[str]]) -> CollectionState:
        """Returns what the log says now; Collected if objects with the keys `used` may have been deleted since `seen`.

        Asks for one entry that is usually not there, and for what was used only where a collection has begun to delete.
        """
        n = seen.newest
        try:
            while True:
                step = self._readable(n + 1)
                n += 1
                if step is None:
                    raise Collected(
                        f"{keys.collection(n)} is damaged, and may have said that what this relied on is deleted: repeat the "
                        "command"
                    )
                if step.kind is StepKind.SWEEP:
                    condemnation = self._readable(step.condemned)
                    gone = None if condemnation is None else set(condemnation.keys).intersection(used())
                    if gone is None or gone:
                        raise Collected(
                            f"garbage was collected meanwhile, and with it {len(gone or ()):,} objects that this relied on: "
                            "repeat the command"
                        )
        except NotFound:
            pass
        return seen if n == seen.newest else self._state(n)

    def _state(self, newest: int) -> CollectionState:
        """Returns what the entries up to `newest` say; a damaged one counts as the end of its collection, which deletes nothing
        more once it is begun again."""
        step = self._readable(newest) if newest else None
        if step is None:
            return CollectionState(newest, retired=self._retired(newest - 1))
        if step.kind is StepKind.DONE:
            return CollectionState(newest, retired=step.retired)
        condemnation = step if step.kind is StepKind.CONDEMN else self._readable(step.condemned)
        if condemnation is None:
            return CollectionState(newest, retired=self._retired(newest - 1))
        return CollectionState(
            newest,
            condemnation,
            step.kind is StepKind.SWEEP,
            frozenset(condemnation.keys),
            self._retired(condemnation.n - 1),
        )

    def _retired(self, newest: int) -> Mapping[Digest, int] | None:
        """Returns the numbers that the latest collection of entries up to `newest` retired, as far as that can be read."""
        for n in range(newest, max(newest - _LOOK_BACK, 0), -1):
            step = self._readable(n)
            if step is not None and step.kind is StepKind.DONE:
                return step.retired
        return None

    def _readable(self, n: int) -> CollectionStep | None:
        """Returns entry `n`, None if it is damaged; NotFound."""
        try:
            return self.step(n)
        except Corrupt as error:
            _log.warning("the log of collections goes on without an entry: %s", error)
            return None


class CollectionLog(CollectionReader):
    """Appends to the log of collections."""

    def __init__(self, store: Writer) -> None:
        super().__init__(store)
        self._appender = DenseLog(store, keys.collection, limits.COLLECTION)

    def append(
        self,
        after: CollectionState,
        kind: StepKind,
        condemned_keys: Collection[str] = (),
        names: Mapping[str, int] | None = None,
        condemned: int = 0,
        retired: Mapping[Digest, int] | None = None,
    ) -> bool:
        """Creates the entry after what was seen; returns False if another collector was faster."""
        n = after.newest + 1
        made = CollectionStep(
            n, kind, nonce(), socket.gethostname(), int(time.time()), tuple(sorted(condemned_keys)), names or {}, condemned,
            retired or {},
        )  # fmt: skip
        return self._appender.append(n, collection.encode(made), "the garbage was condemned or collected") is None
