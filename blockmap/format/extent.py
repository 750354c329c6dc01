"""Extents: each maps a range of a volume to a range of a chunk.

A map is a list of extents in ascending order that do not overlap; blocks that no extent covers read as zeros. `over`
combines two maps, such as those of a clone and of its base.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import NamedTuple

from blockmap.errors import FormatError
from blockmap.format.digest import ABSENT, Digest


class Extent(NamedTuple):
    """Blocks [start, start + length) of a volume."""

    start: int
    length: int
    chunk: Digest | None
    """None for zeros, which hide the map below."""
    blocks: int
    """Blocks of the whole chunk, 1 to 64; 0 for zeros."""
    first: int
    """Block of the chunk where the extent begins; 0 for zeros."""

    @property
    def end(self) -> int:
        return self.start + self.length

    def piece(self, start: int, end: int) -> "Extent":
        """Returns the part of this extent inside [start, end), which must not be empty."""
        start, end = max(start, self.start), min(end, self.end)
        first = 0 if self.chunk is None else self.first + start - self.start
        return Extent(start, end - start, self.chunk, self.blocks, first)


_start = itemgetter(0)


def zeros(start: int, end: int) -> Extent:
    return Extent(start, end - start, None, 0, 0)


def check(extents: Iterable[Extent]) -> None:
    """Asserts the invariants of a map: ascending, disjoint, and each extent within its chunk."""
    at = 0
    for extent in extents:
        if extent.start < at or extent.length < 1:
            raise FormatError(f"{extent} is empty, or begins before block {at}, where the one before it ends")
        if extent.chunk is None:
            sound = (extent.blocks, extent.first) == (0, 0)
        else:
            sound = extent.chunk != ABSENT and 0 <= extent.first <= extent.blocks - extent.length
        if not sound:
            raise FormatError(f"{extent} reaches past the end of its chunk")
        at = extent.end


def coalesce(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Joins neighbours that continue each other in one chunk."""
    last: Extent | None = None
    for extent in extents:
        if last is not None:
            start, length, chunk, _, first = last
            if start + length == extent[0] and chunk == extent[2] and (chunk is None or first + length == extent[4]):
                last = last._replace(length=length + extent.length)
                continue
            yield last
        last = extent
    if last is not None:
        yield last


def over(upper: list[Extent], lower: list[Extent]) -> list[Extent]:
    """Returns the map of `upper` laid over `lower`; zeros of `upper` hide extents of `lower`, and are left out."""
    rest, shown, at = list(lower), list[Extent](), 0
    for extent in upper:
        first = bisect_right(rest, extent.start, at, key=_start)
        shown += rest[at:first]
        if first > at and shown[-1].end > extent.start:  # it is cut, and may go on behind
            first -= 1
            cut = shown.pop()
            if cut.start < extent.start:
                shown.append(cut.piece(cut.start, extent.start))
        if extent.chunk is not None:
            shown.append(extent)
        at = bisect_left(rest, extent.end, first, key=_start)
        if at > first and rest[at - 1].end > extent.end:
            at -= 1
            rest[at] = rest[at].piece(extent.end, rest[at].end)
    return list(coalesce([*shown, *rest[at:]]))


def within(extents: list[Extent], ranges: list[tuple[int, int]]) -> tuple[list[Extent], list[Extent]]:
    """Splits a map into its parts outside and inside of `ranges`, which are half-open, ascending and disjoint."""
    outside = over([zeros(start, end) for start, end in ranges], extents)
    holes = []
    at = 0
    for start, end in ranges:
        if at < start:
            holes.append(zeros(at, start))
        at = end
    holes.append(zeros(at, 1 << 62))
    return outside, over(holes, extents)
