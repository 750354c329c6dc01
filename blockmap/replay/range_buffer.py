"""Puts together the parts of an object that is asked for in ranges, before it is known where its parts begin and end. Pure."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping

Range = tuple[int, int]
"""A half-open range [start, end) of an object, bytes."""


class RangeBuffer:
    """Holds ranges that have come until every part that lies in them was handed out. Not safe to share: whoever owns it
    holds a lock."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        """`ranges` are ascending, and do not overlap."""
        self.ranges = list(ranges)
        self._starts = [start for start, _ in self.ranges]
        self._data: list[memoryview | None] = [None] * len(self.ranges)
        self._is_known = False
        """Whether the parts are known; until then every range that comes is kept."""
        self._parts: dict[int, Range] = {}
        """The parts that have not been handed out, by number."""
        self._needed_by: list[list[int]] = [[] for _ in self.ranges]
        """The numbers of those parts, by range."""

    @property
    def left(self) -> list[int]:
        """Returns the numbers of the known parts that have not been handed out."""
        return list(self._parts)

    def covering(self, start: int, end: int) -> range:
        """Returns the numbers of the ranges that bring the bytes [start, end); none where they do not bring all of them."""
        first = at = bisect_right(self._starts, start) - 1
        if at < 0 or start >= self.ranges[at][1]:
            return range(0)
        while self.ranges[at][1] < end:
            if at + 1 == len(self.ranges) or self.ranges[at + 1][0] != self.ranges[at][1]:
                return range(0)
            at += 1
        return range(first, at + 1)

    def expect(self, parts: Mapping[int, Range]) -> list[tuple[int, memoryview]]:
        """Learns which parts are wanted, by number, all of them within the ranges. Returns those that have come already."""
        self._is_known, self._parts = True, dict(parts)
        for part, (start, end) in parts.items():
            for number in self.covering(start, end):
                self._needed_by[number].append(part)
        self._data = [data if parts else None for data, parts in zip(self._data, self._needed_by, strict=True)]
        return self._take_whole(parts)

    def put(self, number: int, data: memoryview) -> list[tuple[int, memoryview]]:
        """Takes a range that has come. Returns the parts, by number, of which all has come now."""
        if self._needed_by[number] or not self._is_known:
            self._data[number] = data
        return self._take_whole(self._needed_by[number])

    def _take_whole(self, parts: Iterable[int]) -> list[tuple[int, memoryview]]:
        whole = [part for part in parts if all(self._data[at] is not None for at in self.covering(*self._parts[part]))]
        return [(part, self._take(part)) for part in whole]

    def _take(self, part: int) -> memoryview:
        """Returns a part of which all has come; a range that no other part needs is forgotten."""
        start, end = self._parts.pop(part)
        pieces = []
        for number in self.covering(start, end):
            data, base = self._data[number], self._starts[number]
            assert data is not None
            pieces.append(data[max(start - base, 0) : end - base])
            self._needed_by[number].remove(part)
            if not self._needed_by[number]:
                self._data[number] = None
        return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))


def split_ranges(wanted: Iterable[Range], first_bytes: int, least_bytes: int, most_bytes: int) -> Iterator[Range]:
    """Splits ranges into requests: the first has `first_bytes`, the next `least_bytes`, and then they double."""
    size, after = first_bytes, least_bytes
    for start, end in wanted:
        while start < end:
            stop = min(start + size, end)
            yield start, stop
            start, size, after = stop, after, min(2 * after, most_bytes)
