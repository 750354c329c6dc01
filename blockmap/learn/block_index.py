"""The block index maps each block of a volume to its chunk and its file. It is pure."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from blockmap.format.digest import Digest
from blockmap.format.extent import Extent
from blockmap.format.filemap import File
from blockmap.format.profile import ProfileItem

Numbers = npt.NDArray[np.int64]
"""An array of integers with one dimension."""


class BlockIndex:
    """An index of the blocks of one volume, by extent, file and chunk."""

    def __init__(self, root: Digest, extents: Iterable[Extent], files: Sequence[File]) -> None:
        """Makes the index from ascending `extents`; `files` may be incomplete or empty."""
        self.root = root
        self.extents = [extent for extent in extents if extent.chunk is not None]
        self.files = files
        self._starts = _numbers(extent.start for extent in self.extents)
        self._lengths = _numbers(extent.length for extent in self.extents)
        self._before = np.cumsum(self._lengths) - self._lengths
        """Blocks of data before each extent."""
        runs: dict[int, tuple[int, int, int]] = {}
        for number, file in enumerate(files):
            at = 0
            for start, length in file.runs:
                runs.setdefault(start, (length, number, at))  # the first path stands for all hard links
                at += length
        ordered = sorted(runs.items())
        self._run_starts = _numbers(start for start, _ in ordered)
        self._run_lengths = _numbers(run[0] for _, run in ordered)
        self._run_files = _numbers(run[1] for _, run in ordered)
        self._run_at = _numbers(run[2] for _, run in ordered)

    @property
    def blocks(self) -> int:
        """Returns the number of blocks with data."""
        return int(self._lengths.sum())

    @cached_property
    def by_path(self) -> dict[bytes, File]:
        return {file.path: file for file in self.files}

    @cached_property
    def by_chunk(self) -> dict[Digest, list[Extent]]:
        """Returns the extents that hold blocks of each chunk."""
        found: dict[Digest, list[Extent]] = {}
        for extent in self.extents:
            assert extent.chunk is not None
            found.setdefault(extent.chunk, []).append(extent)
        return found

    def pack(self, blocks: Numbers) -> Numbers:
        """Returns the number of blocks of data before each of `blocks`."""
        if not self.extents:
            return np.zeros_like(blocks)
        at = np.searchsorted(self._starts, blocks, "right") - 1
        inside = np.minimum(blocks - self._starts[at], self._lengths[at])
        return np.where(at < 0, 0, self._before[at] + inside)

    def unpack(self, numbers: Numbers) -> Numbers:
        """Returns the blocks of the volume with `numbers` blocks of data before them: the reverse of `pack`."""
        at = np.searchsorted(self._before, numbers, "right") - 1
        return np.asarray(self._starts[at] + numbers - self._before[at])

    def extent_of(self, blocks: Numbers) -> Numbers:
        """Returns the number of the extent that holds each block; -1 for zeros."""
        return _holder(self._starts, self._lengths, blocks)

    def run_of(self, blocks: Numbers) -> Numbers:
        """Returns the number of the file's run that holds each block; -1 for blocks of no file."""
        return _holder(self._run_starts, self._run_lengths, blocks)

    def items(self, blocks: Numbers, times_ms: Numbers, touched: Numbers) -> list[ProfileItem]:
        """Returns blocks in first-touch order as items, without zeros.

        Blocks that follow each other in that order, in one extent and in one run of a file, become one item with the time
        of the first.
        """
        extents = self.extent_of(blocks)
        data = extents >= 0
        blocks, times_ms, touched, extents = blocks[data], times_ms[data], touched[data], extents[data]
        if not len(blocks):
            return []
        runs = self.run_of(blocks)
        new = np.ones(len(blocks), dtype=bool)
        new[1:] = (np.diff(blocks) != 1) | (np.diff(extents) != 0) | (np.diff(runs) != 0) | (np.diff(touched) != 0)
        heads = np.flatnonzero(new)
        lengths = np.diff(np.append(heads, len(blocks)))
        columns = [column[heads].tolist() for column in (blocks, extents, runs, times_ms, touched)]
        return [self._item(*row) for row in zip(*columns, lengths.tolist(), strict=True)]

    def without(self, items: Sequence[ProfileItem], blocks: Numbers) -> list[ProfileItem]:
        """Returns the items without some blocks."""
        own, owners = blocks_of(items)
        kept = ~np.isin(own, blocks)
        times = np.fromiter((item.time_ms for item in items), np.int64)
        touched = np.fromiter((item.touched for item in items), np.int64)
        return self.items(own[kept], times[owners[kept]], touched[owners[kept]])

    def _item(self, start: int, extent: int, run: int, time_ms: int, touched: int, length: int) -> ProfileItem:
        own = self.extents[extent]
        assert own.chunk is not None
        path, at = None, 0
        if run >= 0:
            path = self.files[self._run_files[run]].path
            at = int(self._run_at[run]) + start - int(self._run_starts[run])
        return ProfileItem(start, length, own.chunk, own.first + start - own.start, path, at, time_ms, touched)


def blocks_of(items: Sequence[ProfileItem]) -> tuple[Numbers, Numbers]:
    """Returns every block of `items`, with the number of its item."""
    lengths = _numbers(item.blocks for item in items)
    owners = np.repeat(np.arange(len(items)), lengths)
    inside = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return _numbers(item.start for item in items)[owners] + inside, owners


def _numbers(values: Iterable[int]) -> Numbers:
    return np.fromiter(values, np.int64)


def _holder(starts: Numbers, lengths: Numbers, blocks: Numbers) -> Numbers:
    if not len(starts):
        return np.full(len(blocks), -1, np.int64)
    at = np.searchsorted(starts, blocks, "right") - 1
    return np.where((at >= 0) & (blocks < starts[at] + lengths[at]), at, -1)
