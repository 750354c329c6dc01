"""Maps of what a clone's layers hold: which ranges of a volume a layer has bytes of, and which it has as zeros.

Positions are bytes, so that a write of less than a block needs to read nothing of what is below. A map has the least extents
that say what it says: those that touch differ in kind. Maps that lie on each other are looked through by `look`.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from sortedcontainers import SortedDict

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

    __slots__ = ("_changed", "_extents")

    def __init__(self, extents: Sequence[Held] = ()) -> None:
        self._extents = SortedDict((start, (end, kind)) for start, end, kind in extents)
        """By start: end and kind."""
        self._changed: set[int] = set()
        """Starts of extents that were added, changed or removed since `take_changed`."""

    def __len__(self) -> int:
        return len(self._extents)

    def __iter__(self) -> Iterator[Held]:
        for start, (end, kind) in self._extents.items():
            yield Held(start, end, kind)

    def put(self, start: int, end: int, kind: Kind) -> None:
        """Lays a range over what is there: cuts both edges, drops what is inside, joins neighbours of its kind. O(log n), and
        O(log n) for each extent that is dropped."""
        extents, changed = self._extents, self._changed
        tail = None
        at = extents.bisect_left(start) - 1
        if at >= 0:
            before = extents.keys()[at]
            reached, its = extents[before]
            if reached >= start:
                if its == kind:
                    start = before
                elif reached > start:
                    extents[before] = start, its
                    changed.add(before)
                if reached > end:
                    tail = reached, its
        inside = list(extents.irange(start, end))
        for each in inside:
            reached, its = extents[each]
            if each == end and its != kind:
                break
            if reached > end:
                tail = reached, its
            if each != start:
                del extents[each]
                changed.add(each)
        if tail is not None:
            if tail[1] == kind:
                end = tail[0]
            else:
                extents[end] = tail
                changed.add(end)
        extents[start] = end, kind
        changed.add(start)

    def end(self) -> int:
        """Returns where the last extent ends; 0 if there is none."""
        return int(self._extents.peekitem()[1][0]) if self._extents else 0

    def covers(self, start: int, end: int, kind: Kind) -> bool:
        """Returns True if all of a range is of a kind already."""
        extents = self._extents
        at = extents.bisect_right(start) - 1
        if at < 0:
            return False
        reached, its = extents.peekitem(at)[1]
        return bool(its == kind and reached >= end)

    def has(self, start: int, end: int, kind: Kind) -> bool:
        """Returns True if any of a range is of a kind."""
        return any(each.kind == kind for each in self.within(start, end))

    def within(self, start: int, end: int) -> list[Held]:
        """Returns what the map has of a range, cut to it."""
        extents = self._extents
        found = []
        at = extents.bisect_right(start) - 1
        if at >= 0:
            reached, kind = extents.peekitem(at)[1]
            if reached > start:
                found.append(Held(start, min(reached, end), kind))
        for each in extents.irange(start, end, (False, False)):
            reached, kind = extents[each]
            found.append(Held(each, min(reached, end), kind))
        return found

    def take_changed(self) -> set[int]:
        """Returns the starts at which the map has changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def put_back(self, changed: set[int]) -> None:
        """Takes back what `take_changed` returned, where that could not be stored."""
        self._changed |= changed

    def at(self, starts: set[int]) -> tuple[list[Held], list[int]]:
        """Returns the extents that begin at `starts`, and those of `starts` where none does."""
        extents = self._extents
        there = [Held(start, *extents[start]) for start in starts if start in extents]
        return there, [start for start in starts if start not in extents]

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
