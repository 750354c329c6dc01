"""Streams one object from the store in ranges, as many at once as the link holds."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

from blockmap.errors import BlockmapError, StoreUnavailable
from blockmap.origin.ranges import Ranges
from blockmap.store.concurrent import spawn

_MIN_UNDER_WAY_BYTES = 512 << 10
"""Bytes that are asked for at once over any link."""
_UNKNOWN_LINK_BYTES = 16 << 20
"""Bytes that are asked for at once while the link's rate is not known: that saves a round trip over a fast link; over a slow
one the first blocks share it with later ones."""
_ATTEMPTS = 3
"""Requests for one range before it fails."""
_OUTAGE_S = 90.0
"""Seconds that a store which goes away in mid-stream is waited for."""


class Stream:
    """Asks for the ranges of one object; safe to share between threads."""

    def __init__(
        self,
        key: str,
        ranges: Ranges,
        room: threading.Semaphore,
        take: Callable[[int, memoryview], None],
        fail: Callable[[Exception], None],
    ) -> None:
        """`room` limits the requests, each of which has a thread of its own; `take` is given each range by its number, in any
        order, and `fail` the reason why one does not come."""
        self.bytes = 0
        """Bytes that were read from the store."""
        self.came = 0
        """Bytes of the ranges that have come."""
        self._key, self._ranges, self._room, self._take, self._fail = key, ranges, room, take, fail
        self._planned: Sequence[tuple[int, int]] = []
        self._due: list[int] = []
        """By range: bytes of all ranges up to its end."""
        self._changed = threading.Condition()  # guards what follows, and `came`; never held across I/O
        self._under_way_bytes = 0
        self._early_bytes = 0
        """Bytes that came before the head: as their purpose is unknown, they count as under way until then."""
        self._known = self._stopped = False
        self._last: int | None = None

    def read(self, start: int, end: int) -> memoryview:
        """Returns the bytes [start, end) of the object; after a failure it tries again, once the store is back if it is away.

        Raises Corrupt, NotFound, StoreUnavailable.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            since = time.monotonic()
            try:
                data = self._ranges.read(self._key, start, end, demand=False)
                self.bytes += len(data)
                return data
            except BlockmapError as error:
                if attempt == _ATTEMPTS or self._stopped:
                    raise
                if isinstance(error, StoreUnavailable) and not self._ranges.outage.await_return(
                    since, error, _OUTAGE_S
                ):
                    raise
        raise AssertionError

    def plan(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Learns the ranges to ask for, half-open, ascending."""
        self._planned = ranges
        self._due = list(accumulate(end - start for start, end in ranges))

    def ask(self, have: memoryview | None = None) -> None:
        """Asks for one range after the other, as the link has room; `have` is the first one if it has come already."""
        for number, (start, end) in enumerate(self._planned):
            if number == 0 and have is not None:
                self._hand_over(0, have)
                continue
            with self._changed:
                while self._under_way_bytes and self._under_way_bytes + end - start > self._most_under_way():
                    if self._stopped:
                        return
                    self._changed.wait()
                if self._last is not None and number > self._last:
                    return
                self._under_way_bytes += end - start
            self._room.acquire()
            spawn(partial(self._fetch, number, start, end))

    def is_far(self, number: int) -> bool:
        """Returns True if a range is not among those that come next."""
        return self._due[number] - self.came > 2 * self._most_under_way()

    def know(self, last: int) -> None:
        """Notes that the ranges' contents are known, so that those which came early are not under way any more, and that
        nobody needs a range after the one with the number `last`."""
        with self._changed:
            self._known, self._last = True, last

    def stop(self) -> None:
        """Ends the requests: no more are made."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _most_under_way(self) -> int:
        held = self._ranges.held_bytes
        return _UNKNOWN_LINK_BYTES if held is None else max(_MIN_UNDER_WAY_BYTES, 2 * held)

    def _fetch(self, number: int, start: int, end: int) -> None:
        try:
            if self._stopped:
                return
            self._hand_over(number, self.read(start, end))
            with self._changed:
                self._early_bytes += end - start
                if self._known:
                    self._under_way_bytes -= self._early_bytes
                    self._early_bytes = 0
                    self._changed.notify_all()
        except Exception as error:
            self._fail(error)
        finally:
            self._room.release()

    def _hand_over(self, number: int, data: memoryview) -> None:
        with self._changed:
            self.came += len(data)
        self._take(number, data)
