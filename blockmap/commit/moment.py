"""Reads what a clone was at one moment."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from blockmap.format import BLOCK
from blockmap.format.version import Version
from blockmap.publish.dirty import DirtyRange
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
from blockmap.volume.overlay import Kind, OverlayMap, look
from blockmap.volume.scratch import ScratchFile

_LOOK_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class CapturedMoment:
    """The layers of a clone at one moment, the highest first, over the version below them."""

    base: Version
    size: int
    """Bytes."""
    layers: list[tuple[ScratchFile, OverlayMap]]

    def dirty(self) -> Iterator[DirtyRange]:
        """Yields what the layers have."""
        maps = [extents for _, extents in self.layers]
        return dirty_ranges(maps, self.size)

    def reader(self, repository: Repository) -> Callable[[memoryview, int], None]:
        """Returns a function that fills a buffer; the store is read where a block was written in part, and only then."""
        maps = [extents for _, extents in self.layers]
        below = stored_reader(repository, self.base.root)
        base_size = self.base.root.size * BLOCK

        def read(buf: memoryview, offset: int) -> None:
            for start, end, level, kind in look(maps, offset, offset + len(buf)):
                part = buf[start - offset : end - offset]
                if kind == Kind.DATA:
                    self.layers[level][0].read(part, start)
                elif kind is None and start < base_size:
                    inside = min(end, base_size) - start
                    part[:inside] = below(start, inside)

        return read


def dirty_ranges(maps: list[OverlayMap], size: int) -> Iterator[DirtyRange]:
    """Yields what layers of a volume of `size` bytes have, given their maps, the highest first."""
    for at in range(0, size, _LOOK_BYTES):
        for piece in look(maps, at, min(at + _LOOK_BYTES, size)):
            if piece.kind is not None:
                yield DirtyRange(piece.start, piece.end, piece.kind == Kind.ZEROS)
