"""Judges the reads of a start: whether they begin as a mount does, and when something was last read for the first time."""

from typing import Final

import numpy as np
import numpy.typing as npt

from blockmap.format.trace import Reads

_SUPERBLOCK: Final = 1024, 2048
_FIRST: Final = 64
_MAX_BYTES: Final = 128 << 10
"""Bytes that the kernel reads at once, at most; copying programs read more."""
_MIN_READS: Final = 16
"""Reads of a start: a probe (blkid, nbdinfo) makes fewer, and from a start that does there is nothing to learn."""
_COPIED: Final = 0.9

_Positions = npt.NDArray[np.int64]


def looks_like_mount(reads: Reads) -> bool:
    """Returns True if the first reads are those of a kernel that mounts a file system, and not of a program that copies
    the device from its beginning."""
    if len(reads) < _MIN_READS:
        return False
    first = reads[:_FIRST]
    starts, ends = _ranges(first)
    begin, end = _SUPERBLOCK
    if not ((starts <= begin) & (ends >= end) & (ends - starts <= _MAX_BYTES)).any():
        return False
    merged_starts, merged_ends = _merged(starts, ends)
    copied = ends <= merged_ends[0] if merged_starts[0] == 0 else np.zeros(len(first), bool)
    return float((ends - starts)[copied].sum()) < _COPIED * float((ends - starts).sum())


class Touched:
    """Keeps which bytes were read so far."""

    def __init__(self) -> None:
        self._starts: _Positions = np.empty(0, np.int64)
        self._ends: _Positions = np.empty(0, np.int64)

    def add(self, reads: Reads) -> int | None:
        """Returns the time (microseconds since the open) of the last of these reads that had bytes which none before it
        had."""
        if not len(reads):
            return None
        starts, ends = _ranges(reads)
        new = np.ones(len(reads), bool)
        if len(self._starts):
            at = np.searchsorted(self._starts, starts, "right") - 1
            new = (at < 0) | (self._ends[at] < ends)
        self._starts, self._ends = _merged(np.append(self._starts, starts), np.append(self._ends, ends))
        return int(reads["time_us"][new].max()) if new.any() else None


def _ranges(reads: Reads) -> tuple[_Positions, _Positions]:
    starts = reads["offset"].astype(np.int64)
    return starts, starts + reads["length"].astype(np.int64)


def _merged(starts: _Positions, ends: _Positions) -> tuple[_Positions, _Positions]:
    """Returns the union of ranges, ascending, none of which touches the next."""
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    fresh = np.append(True, starts[1:] > ends[:-1])
    return starts[fresh], ends[np.append(fresh[1:], True)]
