"""An object that comes in ranges, which are cut before it is known where what it holds begins and ends: pure."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class RangeBuffer:
    """Ranges of one object, ascending, and what has come of them. Not safe to share: whoever owns it holds a lock."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.ranges = list(ranges)
        """Half-open, bytes."""
        self._data: list[memoryview | None] = [None] * len(self.ranges)
        self._users = [0] * len(self.ranges)
        self._settled = False
        self._starts = [start for start, _ in self.ranges]

    def put(self, number: int, data: memoryview) -> None:
        """A range has come."""
        if self._users[number] or not self._settled:
            self._data[number] = data

    def spans(self, start: int, end: int) -> tuple[int, int] | None:
        """The first and last of the ranges that bring the bytes [start, end); None where they do not bring all."""
        first = at = bisect_right(self._starts, start) - 1
        if at < 0 or start >= self.ranges[at][1]:
            return None
        while self.ranges[at][1] < end:
            if at + 1 == len(self.ranges) or self.ranges[at + 1][0] != self.ranges[at][1]:
                return None
            at += 1
        return first, at

    def use(self, first: int, last: int) -> None:
        """Somebody will take bytes of these ranges, once."""
        for number in range(first, last + 1):
            self._users[number] += 1

    def settle(self) -> None:
        """All users are known: what none of them takes is forgotten."""
        self._settled = True
        self._data = [data if users else None for data, users in zip(self._data, self._users, strict=True)]

    def is_here(self, first: int, last: int) -> bool:
        return all(self._data[number] is not None for number in range(first, last + 1))

    def take(self, first: int, last: int, start: int, end: int) -> memoryview:
        """The bytes [start, end) of ranges that are here; a range whose last user has come is forgotten."""
        parts = []
        for number in range(first, last + 1):
            data, base = self._data[number], self._starts[number]
            assert data is not None
            parts.append(data[max(start - base, 0) : end - base])
            self._users[number] -= 1
            if not self._users[number]:
                self._data[number] = None
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def split_ranges(
    wanted: Iterable[tuple[int, int]], first_bytes: int, least_bytes: int, most_bytes: int
) -> Iterator[tuple[int, int]]:
    """Cuts ranges into such as are asked for one by one: the first has `first_bytes`, the next `least_bytes`, then they
    double."""
    size, after = first_bytes, least_bytes
    for start, end in wanted:
        while start < end:
            stop = min(start + size, end)
            yield start, stop
            start, size, after = stop, after, min(2 * after, most_bytes)
