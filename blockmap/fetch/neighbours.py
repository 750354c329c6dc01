"""Finds the chunks that lie close to another in its pack, among those of the nodes seen so far. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable

from blockmap.format.digest import Digest
from blockmap.store.plan import Wanted


class Neighbours:
    """Holds the chunks of one volume in the order of their packs.

    An import fills packs in volume order, so that chunks close to each other in a pack are so in the image too: they hold
    files of the same package, or metadata of the same kind. Not safe to share: whoever owns it holds a lock.
    """

    def __init__(self) -> None:
        self._packs: dict[Digest, list[Wanted]] = {}

    def add(self, items: Iterable[Wanted]) -> None:
        touched = {}
        for item in items:
            row = touched[item.place.pack] = self._packs.setdefault(item.place.pack, [])
            row.append(item)
        for row in touched.values():
            row.sort(key=_offset)

    def remove(self, items: Collection[Wanted]) -> None:
        keys = {item.key for item in items}
        for pack in {item.place.pack for item in items}:
            row = [item for item in self._packs.get(pack, ()) if item.key not in keys]
            if row:
                self._packs[pack] = row
            else:
                self._packs.pop(pack, None)

    def around(self, own: Wanted, each_bytes: int) -> list[Wanted]:
        """Returns the chunks that lie whole within `each_bytes` before and after `own`, ascending, without `own`."""
        row = self._packs.get(own.place.pack, [])
        first = bisect_left(row, own.place.offset - each_bytes, key=_offset)
        end = bisect_right(row, own.end + each_bytes, lo=first, key=_end)
        return [item for item in row[first:end] if item.key != own.key]


def _offset(item: Wanted) -> int:
    return item.place.offset


def _end(item: Wanted) -> int:
    return item.end
