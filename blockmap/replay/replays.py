"""Keeps the replays of a server: one of each bundle, however often an export is opened."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence

from blockmap.cache.cache import Cache
from blockmap.cache.staging import StagingArea
from blockmap.cache.verifier import Verifier
from blockmap.format.hint import BundleRef
from blockmap.format.tree import Root
from blockmap.origin.ranges import Ranges
from blockmap.replay.replay import Replay

_REQUESTS = 16
"""Requests of all replays that are under way at once."""
_MAX_REPLAYS = 64
"""Replays that are remembered; the oldest beyond are stopped."""


class Replays:
    """Begins replays, and sums up what they brought; safe to share between threads."""

    def __init__(self, ranges: Ranges, cache: Cache, staging: StagingArea, verifier: Verifier) -> None:
        self._ranges, self._cache, self._staging, self._verifier = ranges, cache, staging, verifier
        self._room = threading.Semaphore(_REQUESTS)
        self._lock = threading.Lock()  # guards what follows; never held across I/O, nor while another lock is taken
        self._latest: dict[str, Replay] = {}
        """By the bundle's key, the latest at the end."""
        self._before: Counter[str] = Counter()
        """Sums of the replays that are forgotten."""

    def begin(
        self, ref: BundleRef, root: Callable[[], Root], judge: Callable[[bool], object] = lambda good: None
    ) -> Replay:
        """Returns the replay of a bundle: the one that is under way or ended just now, else a new one. `root` returns the
        volume's, and may take its time; `judge` is told whether the head was verified."""
        gone = []
        with self._lock:
            found = self._latest.get(ref.key)
            if found is None or found.ref != ref or not found.is_recent():
                gone = [each for each in [self._latest.pop(ref.key, None)] if each is not None]
                found = Replay(ref, root, self._ranges, self._cache, self._staging, self._room, self._verifier, judge)
                self._latest[ref.key] = found
                while len(self._latest) > _MAX_REPLAYS:
                    gone.append(self._latest.pop(next(iter(self._latest))))
                self._before.update(_sums(gone))
        for each in gone:
            each.stop()
        return found

    def recent(self, prefix: str, label: str) -> Replay | None:
        """Returns the replay of a label's bundle whose key begins with `prefix`, if it is under way or ended just now, and
        has not failed."""
        with self._lock:
            latest = list(self._latest.values())
        return next(
            (
                each
                for each in reversed(latest)
                if each.key.startswith(prefix) and each.ref.label == label and each.is_recent() and not each.failed
            ),
            None,
        )

    def status(self) -> dict[str, object]:
        """Returns counters, for people and machines."""
        with self._lock:
            latest, before = list(self._latest.values()), dict(self._before)
        return {
            "bundles_running": sum(not each.ended for each in latest),
            **{name: before.get(name, 0) + value for name, value in _sums(latest).items()},
            "replays": [each.status() for each in latest],
        }

    def stop(self) -> None:
        """Ends all replays before their time."""
        for each in self._all():
            each.stop()

    def close(self) -> None:
        """Ends all replays, after which none touches cache or staging area."""
        for each in self._all():
            each.close()

    def _all(self) -> list[Replay]:
        with self._lock:
            return list(self._latest.values())


def _sums(replays: Sequence[Replay]) -> dict[str, int]:
    """Returns the counters that only grow."""
    return {
        "bundles": len(replays),
        "bundles_failed": sum(bool(each.failed) for each in replays),
        "bundle_bytes": sum(each.bytes for each in replays),
        "bundle_damaged_chunks": sum(each.damaged for each in replays),
        "bundle_missed_reads": sum(each.missed_reads for each in replays),
    }
