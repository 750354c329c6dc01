"""The log of garbage collections, as writers and collectors see it.

Its entries follow each other as `condemn`, `sweep`, `done`, and so on: at most one collection is open. Who writes reads it
before reading what is in the store, and again once the number of the entry that is to name what it wrote is fixed: a
collection that has begun to delete since may have taken what it relied on. What is only condemned may be relied on, since a
collection looks again before it deletes.
"""

import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from blockmap.errors import Collected, Corrupt, FormatError, NotFound
from blockmap.format import collection, keys
from blockmap.format.collection import CollectionStep, StepKind
from blockmap.format.digest import Digest
from blockmap.store import limits
from blockmap.store.base import Reader, Writer
from blockmap.store.log import DenseLog, LogReader, nonce


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
                step = self.step(n + 1)
                n += 1
                if step.kind is StepKind.SWEEP:
                    lost = self.step(step.condemned).keys if step.condemned > 0 else ()
                    gone = set(lost).intersection(used())
                    if gone:
                        raise Collected(
                            f"garbage was collected meanwhile, and with it {len(gone):,} objects that this relied on: "
                            "repeat the command"
                        )
        except NotFound:
            pass
        return seen if n == seen.newest else self._state(n)

    def _state(self, newest: int) -> CollectionState:
        if not newest:
            return CollectionState(0)
        step = self.step(newest)
        if step.kind is StepKind.DONE:
            return CollectionState(newest, retired=step.retired)
        condemnation = step if step.kind is StepKind.CONDEMN else self.step(step.condemned)
        before = condemnation.n - 1
        retired = self.step(before).retired if before else None
        return CollectionState(newest, condemnation, step.kind is StepKind.SWEEP, frozenset(condemnation.keys), retired)


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
