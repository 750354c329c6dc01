"""Extents: each maps a range of a volume to a range of a chunk.

A map is a list of extents in ascending order that do not overlap; blocks that no extent covers read as zeros. `over`
combines two maps, such as those of a clone and of its base.
"""

from collections.abc import Iterable, Iterator
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
        if (
            last is not None
            and last.end == extent.start
            and last.chunk == extent.chunk
            and (extent.chunk is None or last.first + last.length == extent.first)
        ):
            last = last._replace(length=last.length + extent.length)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


def over(upper: list[Extent], lower: list[Extent]) -> list[Extent]:
    """Returns the map of `upper` laid over `lower`; zeros of `upper` hide extents of `lower`, and are left out."""
    shown: list[Extent] = [extent for extent in upper if extent.chunk is not None]
    at = 0
    for extent in lower:
        start = extent.start
        while at < len(upper) and upper[at].end <= start:
            at += 1
        scan = at
        while scan < len(upper) and upper[scan].start < extent.end:
            if start < upper[scan].start:
                shown.append(extent.piece(start, upper[scan].start))
            start = max(start, upper[scan].end)
            scan += 1
        if start < extent.end:
            shown.append(extent.piece(start, extent.end))
    shown.sort(key=lambda extent: extent.start)
    return list(coalesce(shown))


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
