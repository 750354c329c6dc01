"""The frames of a bundle that have come, in the order in which they are opened: pure."""

import heapq
import threading

from blockmap.format.bundle import Piece, Stem


class Frame:
    """A frame with something new; `landed` once what it holds is at hand, or will not come."""

    __slots__ = ("first", "landed", "last", "number", "pieces", "stems", "wanted")

    def __init__(self, number: int, first: int, last: int, wanted: bool) -> None:
        self.number = number
        self.first, self.last = first, last  # of the ranges that bring it
        self.wanted = wanted
        """Whether somebody reads it, or is expected to."""
        self.stems: list[Stem] = []
        self.pieces: list[Piece] = []
        self.landed = threading.Event()


class Come:
    """Those that are wanted, by number; and the others. Not safe to share: whoever owns it holds a lock."""

    def __init__(self) -> None:
        self._wanted: list[tuple[int, Frame, memoryview]] = []
        """A heap."""
        self._others: dict[int, tuple[Frame, memoryview]] = {}

    def __bool__(self) -> bool:
        """Whether there is something to open now."""
        return bool(self._wanted)

    @property
    def rest(self) -> bool:
        """Whether there is something that nobody wants yet."""
        return bool(self._others)

    def put(self, frame: Frame, stored: memoryview) -> None:
        """A frame has come, as it is stored."""
        if frame.wanted:
            heapq.heappush(self._wanted, (frame.number, frame, stored))
        else:
            self._others[frame.number] = frame, stored

    def want(self, frame: Frame) -> memoryview | None:
        """Somebody reads it: what it is as stored, for the reader to open, if it has come and was not wanted before."""
        frame.wanted = True
        found = self._others.pop(frame.number, None)
        return None if found is None else found[1]

    def want_all(self) -> None:
        for frame, stored in self._others.values():
            heapq.heappush(self._wanted, (frame.number, frame, stored))
        self._others.clear()

    def take(self) -> tuple[Frame, memoryview]:
        """The first of those that are wanted."""
        _, frame, stored = heapq.heappop(self._wanted)
        return frame, stored

    def clear(self) -> list[Frame]:
        """Forgets all; what it was."""
        found = [*(frame for _, frame, _ in self._wanted), *(frame for frame, _ in self._others.values())]
        self._wanted.clear()
        self._others.clear()
        return found
