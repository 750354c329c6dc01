"""Fetches the leaves around one that was read in few ranges, so that readers seldom wait for one."""

from collections.abc import Iterator

from blockmap.format.node import FANOUT, Leaf
from blockmap.format.tree import Root
from blockmap.store.walk import LoadNodes, Spot, leaves

_NODES = 64
_BYTES = 512 << 10
"""Bytes loaded of a level at most: the leaves of an image of some 600 MB."""


def prefetch_leaves(root: Root, span: int, load: LoadNodes) -> Iterator[tuple[int, Leaf]]:
    """Yields the leaves around a span, the nearest first; raises the error of a node that cannot be read."""

    def nearest(level: int, row: list[Spot]) -> list[Spot]:
        covered = FANOUT**level
        row = sorted(row, key=lambda spot: max(spot.span - span, span - spot.span - covered + 1, 0))
        chosen, count = [], 0
        for spot in row[:_NODES]:
            place = spot.ref[1]
            count += 0 if place is None else place.stored
            if count > _BYTES:
                break
            chosen.append(spot)
        return chosen

    return leaves(root, load, nearest)
