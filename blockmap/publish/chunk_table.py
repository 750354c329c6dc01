"""The chunks of a volume that is being written: columns, not objects, since a volume may have millions."""

from array import array
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.extent import Extent
from blockmap.format.placement import Placement


class ChunkTable:
    """Chunks by number, in order of first use, with their placements; not thread-safe."""

    def __init__(self) -> None:
        self._ids: dict[Digest, int] = {}
        self._names: list[Digest] = []
        self._blocks = array("B")
        self._packs: list[Digest] = []
        self._pack_ids: dict[Digest, int] = {}
        self._pack = array("I")
        self._codec = array("B")
        self._offset = array("I")
        self._stored = array("I")

    def __len__(self) -> int:
        return len(self._names)

    def get(self, name: Digest) -> int | None:
        return self._ids.get(name)

    def add(self, name: Digest, blocks: int) -> int:
        """Adds a chunk that is new to the table; returns its number. It has no placement until `place`."""
        number = len(self._names)
        self._ids[name] = number
        self._names.append(name)
        self._blocks.append(blocks)
        self._pack.append(0)
        self._codec.append(0)
        self._offset.append(0)
        self._stored.append(0)
        return number

    def place(self, number: int, placement: Placement) -> None:
        pack = self._pack_ids.get(placement.pack)
        if pack is None:
            self._packs.append(placement.pack)
            pack = self._pack_ids[placement.pack] = len(self._packs)
        self._pack[number] = pack
        self._codec[number] = placement.codec
        self._offset[number] = placement.offset
        self._stored[number] = placement.stored

    def placement(self, name: Digest) -> Placement | None:
        number = self._ids.get(name)
        if number is None or not self._pack[number]:
            return None
        pack = self._packs[self._pack[number] - 1]
        raw = self._blocks[number] * BLOCK
        return Placement(pack, self._codec[number], self._offset[number], self._stored[number], raw)

    def name(self, number: int) -> Digest:
        return self._names[number]

    def blocks(self, number: int) -> int:
        return self._blocks[number]


class ExtentTable:
    """Extents of whole chunks in a volume, in the order in which they were found; not thread-safe."""

    def __init__(self) -> None:
        self._start = array("Q")
        self._chunk = array("I")

    def __len__(self) -> int:
        return len(self._start)

    def add(self, start: int, chunk: int) -> None:
        self._start.append(start)
        self._chunk.append(chunk)

    def spans(self, chunks: ChunkTable) -> Iterator[tuple[int, list[Extent]]]:
        """Yields the extents of each span that has any, in volume order."""
        starts = np.frombuffer(self._start, dtype=np.uint64) if self._start else np.zeros(0, dtype=np.uint64)
        order = np.argsort(starts, kind="stable")
        spans = starts[order] // np.uint64(SPAN)
        edges = [0, *(np.flatnonzero(spans[1:] != spans[:-1]) + 1).tolist(), len(order)]
        for begin, end in pairwise(edges):
            if begin == end:
                continue
            extents = []
            for at in order[begin:end].tolist():
                number = self._chunk[at]
                blocks = chunks.blocks(number)
                extents.append(Extent(self._start[at], blocks, chunks.name(number), blocks, 0))
            yield int(spans[begin]), extents
