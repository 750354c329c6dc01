"""Which neighbours a miss takes along: pure."""

from collections.abc import Callable
from typing import NamedTuple

from blockmap.format.digest import Digest
from blockmap.format.node import Placement

MIN_REQUEST_BYTES = 256 << 10
"""Stored bytes up to which a request for one chunk takes its neighbours along."""


class Wanted(NamedTuple):
    """A chunk and where it is."""

    chunk: Digest
    place: Placement


def joined(wanted: list[Wanted], limit_bytes: int, skip: Callable[[Digest], bool]) -> list[Wanted]:
    """The first of `wanted` and those after it that one range request brings: side by side in its pack, in this order.

    Stops at the first that lies elsewhere or would make the request longer than `limit_bytes`; leaves out at the end
    what `skip` says is at hand.
    """
    first = wanted[0].place
    end = first.offset + first.stored
    taken = [wanted[0]]
    useful = 1
    for item in wanted[1:]:
        place = item.place
        if place.pack != first.pack or place.offset != end or end + place.stored - first.offset > limit_bytes:
            break
        end += place.stored
        taken.append(item)
        if not skip(item.chunk):
            useful = len(taken)
    return taken[:useful]
