"""Maps of what a clone's layers hold: which ranges of a volume a layer has bytes of, and which it has as zeros.

Positions are bytes, so that a write of less than a block needs to read nothing of what is below. A map has the least extents
that say what it says: those that touch differ in kind. Maps that lie on each other are looked through by `look`.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from sortedcontainers import SortedList

from blockmap.errors import FormatError


class Kind(IntEnum):
    """What a layer has of a range; the numbers are stored."""

    ZEROS = 0
    DATA = 1
    """The layer's scratch file has the bytes, at the same offset."""


class Held(NamedTuple):
    """Bytes [start, end) of a volume that a layer holds."""

    start: int
    end: int
    kind: Kind


class OverlayPiece(NamedTuple):
    """Bytes [start, end) of a volume, and the layer that shows them."""

    start: int
    end: int
    level: int
    """The number of the layer, from 0 for the highest; -1 for what is below all of them."""
    kind: Kind | None
    """What that layer has; None for what is below all of them."""


class OverlayMap:
    """The extents of one layer; threads that share it must take turns."""

    __slots__ = ("_changed", "_held", "_starts")

    def __init__(self, extents: Sequence[Held] = ()) -> None:
        self._held = {each.start: each for each in extents}
        """By start."""
        self._starts = SortedList(self._held)
        self._changed: set[int] = set()
        """Starts of extents that were added, changed or removed since `take_changed`."""

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return map(self._held.__getitem__, self._starts)

    def put(self, start: int, end: int, kind: Kind) -> bool:
        """Lays a range over what is there: cuts both edges, drops what is inside, joins neighbours of its kind; returns False
        if all of the range was of its kind already. O(log n), and O(log n) for each extent that is dropped."""
        starts, held, changed = self._starts, self._held, self._changed
        tail = None
        at = starts.bisect_left(start)
        if at:
            before, reached, its = held[starts[at - 1]]
            if reached >= start:
                if its is kind:
                    if reached >= end:
                        return False
                    start = before
                elif reached > start:
                    held[before] = Held(before, start, its)
                    changed.add(before)
                    if reached > end:
                        tail = reached, its
        while at < len(starts):
            each, reached, its = held[starts[at]]
            if each > end or (each == end and its is not kind):
                break
            if reached > end:
                tail = reached, its
            if each == start:
                if its is kind and reached >= end:
                    return False
                at += 1
                continue
            del starts[at]
            del held[each]
            changed.add(each)
        if tail is not None:
            if tail[1] is kind:
                end = tail[0]
            else:
                self._set(Held(end, *tail))
        self._set(Held(start, end, kind))
        return True

    def has(self, start: int, end: int, kind: Kind) -> bool:
        """Returns True if any of a range is of a kind."""
        return any(each.kind is kind for each in self.within(start, end))

    def within(self, start: int, end: int) -> list[Held]:
        """Returns what the map has of a range, cut to it."""
        starts, held = self._starts, self._held
        found = []
        at = starts.bisect_right(start) - 1
        if at >= 0:
            _, reached, kind = held[starts[at]]
            if reached >= end:
                return [Held(start, end, kind)]
            if reached > start:
                found.append(Held(start, reached, kind))
        for each in starts.irange(start, end, (False, False)):
            _, reached, kind = held[each]
            found.append(Held(each, min(reached, end), kind))
        return found

    def take_changed(self) -> tuple[list[int], list[Held | None]]:
        """Returns the starts at which the map has changed since the last call, and the extent at each, if there is one now."""
        starts = list(self._changed)
        self._changed.clear()
        return starts, list(map(self._held.get, starts))

    def put_back(self, starts: Sequence[int]) -> None:
        """Takes back what `take_changed` returned, where that could not be stored."""
        self._changed.update(starts)

    def _set(self, extent: Held) -> None:
        start = extent.start
        if start not in self._held:
            self._starts.add(start)
        self._held[start] = extent
        self._changed.add(start)

    def check(self) -> None:
        """Asserts the invariants: extents are not empty, do not overlap, and differ in kind where they touch."""
        last: Held | None = None
        for each in self:
            if each.start >= each.end or (last is not None and last.end > each.start):
                raise FormatError(f"{each} is empty, or begins before the end of {last}")
            if last is not None and last.end == each.start and last.kind == each.kind:
                raise FormatError(f"{each} continues {last}")
            last = each


def look(maps: Sequence[OverlayMap], start: int, end: int) -> list[OverlayPiece]:
    """Returns what shows in a range through maps that lie on each other, the highest first, in ascending order and without
    gaps."""
    return _look(maps, 0, start, end)


def _look(maps: Sequence[OverlayMap], level: int, start: int, end: int) -> list[OverlayPiece]:
    if level == len(maps):
        return [OverlayPiece(start, end, -1, None)]
    found: list[OverlayPiece] = []
    for first, last, kind in maps[level].within(start, end):
        if start < first:
            found += _look(maps, level + 1, start, first)
        found.append(OverlayPiece(first, last, level, kind))
        start = last
    if start < end:
        found += _look(maps, level + 1, start, end)
    return found
