"""One object on its way over the link, in ranges: asked for one after the other, as many at once as the link holds."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

from blockmap.errors import BlockmapError, StoreUnavailable
from blockmap.origin.ranges import Ranges
from blockmap.store.concurrent import spawn

_MIN_UNDER_WAY_BYTES = 512 << 10
_UNKNOWN_LINK_BYTES = 16 << 20
"""As much is asked for at once where nothing has told of the link's rate yet: a round trip less over a fast one, and over a
slow one the first blocks share it with later ones."""
_ATTEMPTS = 3
_OUTAGE_S = 90.0
"""How long a store that goes away in mid-stream is waited for."""


class Stream:
    """The ranges of one object; safe to share between threads."""

    def __init__(
        self,
        key: str,
        ranges: Ranges,
        room: threading.Semaphore,
        take: Callable[[int, memoryview], None],
        fail: Callable[[Exception], None],
    ) -> None:
        """`room` is for requests, each in a thread that nobody has to wait for; `take` is given each range by its number, in
        any order, and `fail` why one will not come."""
        self.bytes = 0
        """That were read."""
        self.came = 0
        """Bytes of ranges that were taken."""
        self._key, self._ranges, self._room, self._take, self._fail = key, ranges, room, take, fail
        self._planned: Sequence[tuple[int, int]] = []
        self._due: list[int] = []
        """By range: bytes until its end, in the order in which they are asked for."""
        self._changed = threading.Condition()  # guards what follows, and `came`; never held across I/O
        self._under_way_bytes = self._early_bytes = 0
        """Early are those that came before it is known what they are: they count as under way until then."""
        self._known = self._stopped = False

    def read(self, start: int, end: int) -> memoryview:
        """The bytes [start, end) of the object; tries again what fails, while the store is away as soon as it is back.

        Corrupt, NotFound, StoreUnavailable.
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
                if isinstance(error, StoreUnavailable) and not self._ranges.line.await_return(since, error, _OUTAGE_S):
                    raise
        raise AssertionError

    def plan(self, ranges: Sequence[tuple[int, int]]) -> None:
        """These are what is to be asked for, half-open, ascending."""
        self._planned = ranges
        self._due = list(accumulate(end - start for start, end in ranges))

    def ask(self, have: memoryview | None = None) -> None:
        """Asks for one range after the other, as the link has room for it; has the first where `have` is given."""
        for number, (start, end) in enumerate(self._planned):
            if number == 0 and have is not None:
                self._hand_over(0, have)
                continue
            with self._changed:
                while self._under_way_bytes and self._under_way_bytes + end - start > self._most_under_way():
                    if self._stopped:
                        return
                    self._changed.wait()
                self._under_way_bytes += end - start
            self._room.acquire()
            spawn(partial(self._bring, number, start, end))

    def is_far(self, number: int) -> bool:
        """Whether a range is so far down that it takes longer than the next ones."""
        return self._due[number] - self.came > 2 * self._most_under_way()

    def know(self) -> None:
        """It is known what the ranges are: those that came early are under way no more."""
        with self._changed:
            self._known = True

    def stop(self) -> None:
        """Asks for nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _most_under_way(self) -> int:
        held = self._ranges.held_bytes
        return _UNKNOWN_LINK_BYTES if held is None else max(_MIN_UNDER_WAY_BYTES, 2 * held)

    def _bring(self, number: int, start: int, end: int) -> None:
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
