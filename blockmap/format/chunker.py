"""Content-defined chunks: where a run of blocks is cut.

A run is cut after each block whose xxh3-64 (seed 0) begins with `bits` zero bits, but a chunk has at least `min` and at
most `max` blocks. Three things cut whatever the minimum says: an all-zero block, which is never in a chunk; the edge of
a leaf's span; and the beginning and end of the run, which is how an importer forces a cut at the edge of a file. A cut
depends on nothing before the last forced one, so equal contents are cut alike wherever they are.

The skeleton (cut points where a hash of the content matches a mask) is that of LBFS, SOSP'01.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from blockmap.errors import FormatError
from blockmap.format import BLOCK

SPAN: Final = 4096
"""Blocks of address space that a leaf covers; no chunk of a volume crosses a multiple of it."""
MAX_BLOCKS: Final = 64
"""The format's limit on the blocks of a chunk, whatever a store's parameters are."""

_ZEROS = bytes(BLOCK)
_ZERO_HASH = xxh3_64_intdigest(_ZEROS)

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters of a store's chunks; a store has one set, since chunks that are cut differently never deduplicate."""

    bits: int = 4
    """A cut is made after one block in 2^bits."""
    min: int = 4
    """Blocks that a chunk has at least."""
    max: int = MAX_BLOCKS
    """Blocks that a chunk has at most."""

    def __post_init__(self) -> None:
        if not (0 < self.min <= self.max <= MAX_BLOCKS and 0 < self.bits <= 32):
            raise FormatError(f"{self} does not describe a chunker: 0 < min <= max <= {MAX_BLOCKS}, 0 < bits <= 32")


@dataclass(frozen=True, slots=True)
class Split:
    """The chunks that `split` found in a run, and how much of the run is finished."""

    chunks: list[tuple[int, int]]
    """Half-open ranges of blocks, relative to the beginning of the run."""
    done: int
    """Blocks at the front that need not be passed again: chunks and zeros."""


def hashes(data: bytes | bytearray | memoryview) -> Hashes:
    """Returns the xxh3-64 of each block."""
    view = memoryview(data)
    return np.array([xxh3_64_intdigest(view[at : at + BLOCK]) for at in range(0, len(view), BLOCK)], dtype=np.uint64)


def zero_blocks(data: bytes | bytearray | memoryview, of: Hashes) -> list[int]:
    """Returns the numbers of the all-zero blocks of `data`, ascending, given the hashes of all blocks."""
    view = memoryview(data)
    found = np.flatnonzero(of == _ZERO_HASH).tolist()
    return [at for at in found if bytes(view[at * BLOCK : (at + 1) * BLOCK]) == _ZEROS]  # a view compares byte by byte


def split(of: Hashes, zeros: list[int], block: int, final: bool, parameters: Parameters) -> Split:
    """Cuts a run that begins, with a cut, at volume block `block`.

    `of` has the hashes of its blocks and `zeros` the all-zero ones. Unless the run is `final`, a chunk at its
    end that may still grow is left for the next call.
    """
    count = len(of)
    candidates = np.flatnonzero(of >> np.uint64(64 - parameters.bits) == 0).tolist()
    chunks = []
    at = next_zero = 0
    while at < count:
        while next_zero < len(zeros) and zeros[next_zero] < at:
            next_zero += 1
        if next_zero < len(zeros) and zeros[next_zero] == at:
            at += 1
            continue
        limit = min(at + parameters.max, at + SPAN - (block + at) % SPAN)
        if next_zero < len(zeros):
            limit = min(limit, zeros[next_zero])
        nearest = bisect_left(candidates, at + parameters.min - 1)
        end = candidates[nearest] + 1 if nearest < len(candidates) else limit
        end = min(end, limit)
        if end > count:
            if not final:
                break
            end = count
        chunks.append((at, end))
        at = end
    return Split(chunks, at)
