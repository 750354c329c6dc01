"""Holds the cache's slots in memory: their places, what they allocate, and the order of eviction."""

from array import array
from collections import deque

import numpy as np

from blockmap.cache import slot as slots
from blockmap.cache.slot import Row
from blockmap.format import BLOCK

_ALL = (1 << 64) - 1


class SlotTable:
    """Holds columns by slot number, the index by digest, and the order of eviction.

    Whoever changes it holds the cache's lock; lookups and the marks `dead`, `used` and `checked` need none. Slot numbers
    are never used again, since readers remember them; a slot that is gone keeps 31 bytes.
    """

    def __init__(self) -> None:
        self.dead = bytearray()
        self.used = bytearray()
        self.checked = bytearray()
        self.position = array("Q")
        """Where the header begins in the data file, bytes."""
        self.mask = array("Q")
        self.length = array("I")
        """Bytes of the whole content."""
        self.names: list[bytes] = []
        """Digests; empty for a slot that is gone."""
        self.index: dict[bytes, int] = {}
        self.pins: dict[int, int] = {}
        self.bytes = 0
        """Bytes that are allocated in the data file, or about to be, or not punched yet."""
        self.pinned_bytes = 0
        self._queue: deque[int] = deque()  # slots in the order in which eviction looks at them

    def load(self, rows: list[Row], file_end: int) -> tuple[list[tuple[int, int]], list[int], int]:
        """Takes over the slots on record, sorted by position, into an empty table.

        Returns the ranges [start, end) of the file that belong to no slot, the positions of rows that overlap with one
        before them, repeat a digest or are beyond the end of the file, and where the next slot may begin. In columns, as
        there may be a million.
        """
        position = np.array([row[0] for row in rows], np.int64)
        length = np.array([row[2] for row in rows], np.int64)
        header = slots.header_bytes(length)
        end = position + header + slots.blocks_of(length) * BLOCK
        before = np.concatenate(([0], np.maximum.accumulate(end)[:-1])) if rows else end
        keep = (position >= before) & (position + header <= file_end)
        for i in np.flatnonzero(keep).tolist():
            digest = rows[i][1]
            if digest in self.index:
                keep[i] = False
            else:
                self.index[digest] = len(self.index)
        lost = position[~keep].tolist()
        masks = [rows[i][3] & _ALL for i in np.flatnonzero(keep).tolist()]
        position, length, end = position[keep], length[keep], end[keep]
        count = len(masks)
        self.names = list(self.index)
        self.position.frombytes(position.tobytes())
        self.length.frombytes(length.astype(np.uint32).tobytes())
        self.mask.extend(masks)
        for marks in (self.dead, self.used, self.checked):
            marks.extend(bytes(count))
        self._queue.extend(self.index.values())
        blocks = slots.blocks_of(length)
        there = np.where(blocks <= 64, np.array([mask.bit_count() for mask in masks], np.int64), blocks)
        self.bytes = int((slots.header_bytes(length) + there * BLOCK).sum())
        starts = np.concatenate(([0], end))
        # Beyond the end of a file that was cut short, so that a slot which lost its content and a new one never meet.
        last = max(file_end, int(starts[-1]))
        ends = np.concatenate((position, [last]))
        gaps = np.flatnonzero(starts < ends)
        return list(zip(starts[gaps].tolist(), ends[gaps].tolist(), strict=True)), lost, last

    def add(self, position: int, digest: bytes, length: int, mask: int) -> int:
        """Adds a slot for a digest that has none, and returns its number; its bytes are accounted for already."""
        slot = len(self.names)
        self.position.append(position)
        self.mask.append(mask)
        self.length.append(length)
        self.checked.append(0)
        self.used.append(0)
        self.dead.append(0)
        self.names.append(digest)
        self._queue.append(slot)
        self.index[digest] = slot
        return slot

    def kill(self, slot: int) -> None:
        """Marks a slot dead and forgets it; its bytes stay accounted for until they are punched."""
        # In this order: whoever still finds the digest must see the mark as well.
        self.dead[slot] = 1
        del self.index[self.names[slot]]
        self.names[slot] = b""
        if slot in self.pins:
            self.pinned_bytes -= self.size(slot)

    def size(self, slot: int) -> int:
        """Returns the bytes that a slot allocates."""
        length = self.length[slot]
        return slots.header_bytes(length) + slots.present(length, self.mask[slot]) * BLOCK

    def span(self, slot: int) -> int:
        """Returns the bytes from the beginning of a slot to its end, absent blocks included."""
        return slots.header_bytes(self.length[slot]) + slots.blocks_of(self.length[slot]) * BLOCK

    def victims(self, excess: int) -> list[int]:
        """Kills slots that allocate `excess` bytes, or all that may go if that is less, and returns them.

        Second chance: a slot that was read since the last look, or is pinned, goes to the end of the queue.
        """
        found = []
        looks = 2 * len(self._queue)
        while excess > 0 and looks > 0:
            looks -= 1
            slot = self._queue.popleft()
            if self.dead[slot]:
                continue
            if self.used[slot] or slot in self.pins:
                self.used[slot] = 0
                self._queue.append(slot)
                continue
            excess -= self.size(slot)
            self.kill(slot)
            found.append(slot)
        return found

    def pin(self, slot: int) -> None:
        if slot not in self.pins and not self.dead[slot]:
            self.pinned_bytes += self.size(slot)
        self.pins[slot] = self.pins.get(slot, 0) + 1

    def unpin(self, slot: int) -> None:
        self.pins[slot] -= 1
        if not self.pins[slot]:
            del self.pins[slot]
            if not self.dead[slot]:
                self.pinned_bytes -= self.size(slot)
