"""Maps of what a clone's layers hold: which ranges of a volume a layer has bytes of, and which it has as zeros.

Positions are bytes, so that a write of less than a block needs to read nothing of what is below. A map has the least extents
that say what it says: those that touch differ in kind. Maps that lie on each other are looked through by `look`.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from sortedcontainers import SortedDict

from blockmap.errors import FormatError

_SPAN_BITS: Final = 24
"""A span is 16 MiB, at most 4,096 extents of whole blocks."""


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


_new = tuple.__new__
"""Makes a Held in half the time of its own constructor, which is Python's."""


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

    __slots__ = ("_changed", "_held", "_spans")

    def __init__(self, extents: Sequence[Held] = ()) -> None:
        """`extents` are in ascending order."""
        self._held = {each.start: each for each in extents}
        """By start."""
        self._spans: SortedDict[int, list[int]] = SortedDict()
        """By span: the starts in it, in ascending order. Most changes find their neighbours in one span, in a third
        of the time that one sorted list of all starts takes."""
        for start, _, _ in extents:
            self._spans.setdefault(start >> _SPAN_BITS, []).append(start)
        self._changed: set[int] = set()
        """Starts of extents that were added, changed or removed since `take_changed`."""

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return (self._held[start] for starts in self._spans.values() for start in starts)

    def put(self, start: int, end: int, kind: Kind) -> bool:
        """Lays a range over what is there: cuts both edges, drops what is inside, joins neighbours of its kind; returns False
        if all of the range was of its kind already. O(log n), and O(log n) for each extent that is dropped."""
        done = self._put_between(start, end, kind)
        if done is not None:
            return done
        tail = None
        at = start
        if (before := self._before(start)) is not None and before.end >= start:
            if before.kind is kind:
                if before.end >= end:
                    return False
                start = before.start
            elif before.end > start:
                self._set(Held(before.start, start, before.kind))
                if before.end > end:
                    tail = before
        while (each := self._from(at)) is not None and each.start <= end:
            if each.kind is kind:
                if each.start == start and each.end >= end:
                    return False
                end = max(end, each.end)
            elif each.start == end:
                break
            elif each.end > end:
                tail = each
            if each.start == start:
                at += 1
            else:
                self._remove(each.start)
        if tail is not None:
            self._set(Held(end, tail.end, tail.kind))
        self._set(Held(start, end, kind))
        return True

    def end(self) -> int:
        """Returns where the last extent ends; 0 if there is none."""
        return self._held[self._spans.peekitem()[1][-1]].end if self._held else 0

    def has(self, start: int, end: int, kind: Kind) -> bool:
        """Returns True if any of a range is of a kind."""
        return any(each.kind is kind for each in self.within(start, end))

    def within(self, start: int, end: int) -> list[Held]:
        """Returns what the map has of a range, cut to it."""
        found = []
        if (first := self._before(start + 1)) is not None and first.end > start:
            if first.end >= end:
                return [Held(start, end, first.kind)]
            found.append(Held(start, first.end, first.kind))
        for span in self._spans.irange(start >> _SPAN_BITS, end - 1 >> _SPAN_BITS):
            starts = self._spans[span]
            for each in starts[bisect_right(starts, start) : bisect_left(starts, end)]:
                _, reached, kind = self._held[each]
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

    def check(self) -> None:
        """Asserts the invariants: extents are not empty, do not overlap, and differ in kind where they touch."""
        last: Held | None = None
        for each in self:
            if each.start >= each.end or (last is not None and last.end > each.start):
                raise FormatError(f"{each} is empty, or begins before the end of {last}")
            if last is not None and last.end == each.start and last.kind == each.kind:
                raise FormatError(f"{each} continues {last}")
            last = each

    def _put_between(self, start: int, end: int, kind: Kind) -> bool | None:
        """Does what `put` does where that changes no extent but those of its kind next to the range, which is what nearly all
        writes do; returns None where it is not so simple, and nothing has happened then. In a third of the time."""
        starts = self._spans.get(start >> _SPAN_BITS)
        if starts is None or end >> _SPAN_BITS != start >> _SPAN_BITS or not (at := bisect_right(starts, start)):
            return None
        held = self._held
        first, reached, left_kind = held[starts[at - 1]]
        if reached > start:
            return False if reached >= end and left_kind is kind else None
        if at < len(starts):
            right, last, right_kind = held[starts[at]]
            if right < end:
                return None
            if right == end and right_kind is kind:
                end = last
                del starts[at], held[right]
                self._changed.add(right)
        if reached == start and left_kind is kind:
            start = first
        else:
            starts.insert(at, start)
        held[start] = _new(Held, (start, end, kind))
        self._changed.add(start)
        return True

    def _before(self, start: int) -> Held | None:
        """Returns the last extent that begins before `start`."""
        spans = self._spans
        starts = spans.get(start >> _SPAN_BITS)
        if starts is not None and (at := bisect_left(starts, start)):
            return self._held[starts[at - 1]]
        at = spans.bisect_left(start >> _SPAN_BITS)
        return self._held[spans.peekitem(at - 1)[1][-1]] if at else None

    def _from(self, start: int) -> Held | None:
        """Returns the first extent that begins at `start` or after it."""
        spans = self._spans
        starts = spans.get(start >> _SPAN_BITS)
        if starts is not None and (at := bisect_left(starts, start)) < len(starts):
            return self._held[starts[at]]
        at = spans.bisect_right(start >> _SPAN_BITS)
        return self._held[spans.peekitem(at)[1][0]] if at < len(spans) else None

    def _set(self, extent: Held) -> None:
        start = extent.start
        if start not in self._held:
            starts = self._spans.get(start >> _SPAN_BITS)
            if starts is None:
                self._spans[start >> _SPAN_BITS] = [start]
            else:
                insort(starts, start)
        self._held[start] = extent
        self._changed.add(start)

    def _remove(self, start: int) -> None:
        starts = self._spans[start >> _SPAN_BITS]
        if len(starts) == 1:
            del self._spans[start >> _SPAN_BITS]
        else:
            del starts[bisect_left(starts, start)]
        del self._held[start]
        self._changed.add(start)


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
