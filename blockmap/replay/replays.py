"""The bundles that are on their way, or came lately: one replay of each however often an export is opened."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence

from blockmap.cache.cache import Cache
from blockmap.cache.staging import StagingArea
from blockmap.format.hint import BundleRef
from blockmap.format.tree import Root
from blockmap.origin.ranges import Ranges
from blockmap.replay.replay import Replay

_REQUESTS = 16
"""Of all bundles, at once."""
_KEPT = 64


class Replays:
    """Safe to share between threads."""

    def __init__(self, ranges: Ranges, cache: Cache, landing: StagingArea, verifying: threading.Lock) -> None:
        """`verifying` is held by whoever verifies."""
        self._ranges, self._cache, self._landing, self._verifying = ranges, cache, landing, verifying
        self._room = threading.Semaphore(_REQUESTS)
        self._lock = threading.Lock()  # guards what follows; never held across I/O, nor while another lock is taken
        self._latest: dict[str, Replay] = {}
        """The last one at the end."""
        self._before: Counter[str] = Counter()
        """Sums of what came before those."""

    def begin(self, about: BundleRef, root: Callable[[], Root]) -> Replay:
        """Begins to bring a bundle, unless that is under way or was done just now; `root`, the volume's, may be waited for."""
        gone = []
        with self._lock:
            found = self._latest.get(about.key)
            if found is None or not found.is_recent():
                gone = [each for each in [self._latest.pop(about.key, None)] if each is not None]
                found = Replay(about, root, self._ranges, self._cache, self._landing, self._room, self._verifying)
                self._latest[about.key] = found
                while len(self._latest) > _KEPT:
                    gone.append(self._latest.pop(next(iter(self._latest))))
                self._before.update(_sums(gone))
        for each in gone:
            each.stop()
        return found

    def status(self) -> dict[str, object]:
        """Counters, for people and machines."""
        with self._lock:
            latest, before = list(self._latest.values()), dict(self._before)
        return {
            "bundles_running": sum(not each.ended for each in latest),
            **{name: before.get(name, 0) + value for name, value in _sums(latest).items()},
            "replays": [each.status() for each in latest],
        }

    def stop(self) -> None:
        """Ends all before their time."""
        for each in self._all():
            each.stop()

    def close(self) -> None:
        """Ends all; cache and landing are not touched any more."""
        for each in self._all():
            each.close()

    def _all(self) -> list[Replay]:
        with self._lock:
            return list(self._latest.values())


def _sums(replays: Sequence[Replay]) -> dict[str, int]:
    """What only grows."""
    return {
        "bundles": len(replays),
        "bundles_failed": sum(bool(each.failed) for each in replays),
        "bundle_bytes": sum(each.bytes for each in replays),
        "bundle_damaged": sum(each.damaged for each in replays),
        "bundle_missed_reads": sum(each.missed_reads for each in replays),
    }
