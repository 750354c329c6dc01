"""Divides a volume into regions, and says which is the nearest to what was missed. Pure.

An import writes a volume layer by layer, the files of each in the order of its archive, its directories behind them. So near
means: the same file, its directory, its package, its layer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from blockmap.format.chunker import SPAN
from blockmap.format.node import Leaf
from blockmap.store.plan import Wanted, chunk_at

_REGION_BYTES = 2 << 20
"""Bytes of a region, as stored: those of a large request."""
_NEAR_BLOCKS = 2048
"""Blocks (8 MiB) at which a miss counts half as much as one at hand."""


@dataclass(frozen=True, slots=True)
class Region:
    """Neighbouring chunks of one leaf."""

    block: int
    """Where it begins in the volume."""
    leaf: Leaf
    first: int
    end: int
    """Its chunks are [first, end) of the leaf's."""
    stored: int
    """Bytes of its chunks in the store."""
    raw: int
    """Bytes of their contents."""

    def chunks(self) -> list[Wanted]:
        """Returns its chunks, in volume order."""
        rows = zip(self.leaf.chunks[self.first : self.end], self.leaf.placements[self.first : self.end], strict=True)
        return [chunk_at(name, place) for name, place in rows if place is not None]


class Regions:
    """Regions that are still to be fetched. Not safe to share: one thread at a time uses it."""

    def __init__(self, regions: Iterable[Region]) -> None:
        self._regions = list(regions)
        self._blocks = np.array([region.block for region in self._regions], dtype=np.float64)
        self._left = np.ones(len(self._regions), dtype=bool)
        self.stored = sum(region.stored for region in self._regions)
        """Bytes of all that are left, in the store."""
        self.raw = sum(region.raw for region in self._regions)
        """Bytes of the contents of all that there were."""

    def take_nearest(self, missed: Sequence[int]) -> Region | None:
        """Removes and returns the region with most of the missed blocks around it, the first of several; None if none is
        left."""
        left = np.flatnonzero(self._left)
        if not len(left):
            return None
        away = np.abs(self._blocks[left, None] - np.array(missed, dtype=np.float64)[None, :])
        at = int(left[np.argmax((1 / (1 + away / _NEAR_BLOCKS)).sum(axis=1))])
        self._left[at] = False
        found = self._regions[at]
        self.stored -= found.stored
        return found


def regions_of(span: int, leaf: Leaf) -> list[Region]:
    """Returns the regions of a leaf, in volume order."""
    _, first_use = np.unique(leaf.index, return_index=True)
    starts = leaf.starts[first_use].tolist()
    found, first, stored, raw = [], 0, 0, 0
    for at, place in enumerate(leaf.placements):
        if place is not None:
            stored, raw = stored + place.stored, raw + place.raw
        if stored >= _REGION_BYTES or at + 1 == len(leaf.placements):
            found.append(Region(span * SPAN + starts[first], leaf, first, at + 1, stored, raw))
            first, stored, raw = at + 1, 0, 0
    return found
