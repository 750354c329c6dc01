"""Plans which ranges of packs to read for what is wanted. Pure."""

from collections.abc import Collection
from hashlib import sha256
from typing import NamedTuple

from blockmap.format.digest import Digest
from blockmap.format.placement import Placement

GAP_BYTES = 64 << 10
"""Unneeded bytes that a range may include to save a request."""
MAX_REQUEST_BYTES = 2 << 20
"""Bytes of a range that is read ahead, at most: a reader that needs a part of it meanwhile waits for all of it."""


class Wanted(NamedTuple):
    """A chunk or a node, and where it is."""

    name: Digest
    place: Placement
    key: bytes
    """The cache's key for it."""
    is_node: bool = False

    @property
    def end(self) -> int:
        """Returns where it ends, in bytes from the beginning of its pack."""
        return self.place.offset + self.place.stored


Request = list[Wanted]
"""Items of one pack, ascending: asks for the range from where the first begins to where the last ends."""


def chunk_at(name: Digest, place: Placement) -> Wanted:
    return Wanted(name, place, name)


def node_at(name: Digest, place: Placement) -> Wanted:
    """Returns a node to ask for. Its name is not its key: the placements in a frame are those of one stored form."""
    key = sha256(b"frame" + name + place.pack + place.offset.to_bytes(8, "little")).digest()
    return Wanted(name, place, key, is_node=True)


def requests(items: Collection[Wanted], limit_bytes: int, gap_bytes: int = GAP_BYTES) -> list[Request]:
    """Returns `items` as few ranges, each of at most `limit_bytes` or of one item; packs in the order of `items`."""
    packs: dict[Digest, int] = {}
    for item in items:
        packs.setdefault(item.place.pack, len(packs))
    found: list[Request] = []
    for item in sorted(items, key=lambda item: (packs[item.place.pack], item.place.offset)):
        if found and _continues(found[-1], item, limit_bytes, gap_bytes):
            found[-1].append(item)
        else:
            found.append([item])
    return found


def _continues(request: Request, item: Wanted, limit_bytes: int, gap_bytes: int) -> bool:
    first, last = request[0], request[-1]
    return (
        item.place.pack == last.place.pack
        and 0 <= item.place.offset - last.end <= gap_bytes
        and item.end - first.place.offset <= limit_bytes
    )
