"""Chooses what of a profile the kernel is not warmed with, so that a server sees whether starts still read it. It is pure.

Reads of what the kernel was warmed with reach no server. So the bundle of each profile has a few blocks that its reading list
leaves out; the number of the profile says which. They are a few here and there, of those that most starts read. Of the others,
one part after the other is left out, files before the file system's own blocks, which the warming of files reads as well; and
once a start was seen not to read a block, it is left out until a start reads it, or it is gone.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from blockmap.format.profile import ProfileItem
from blockmap.learn.block_index import BlockIndex, Numbers, blocks_of

PROVEN_STARTS: Final = 24
"""Starts for which a profile counts once starts have shown what of it they read; others count for no more than merge.MEMORY."""

_FEW = 32
"""Blocks that are left out of what a profile is sure of. A read of one takes some 0.3 ms."""
_SMALL = 1 / 8
"""Limit on them, as a share of what a small profile is sure of."""
_LITTLE = 1 / 16
"""Share of a profile that it may be unsure of without any of that being left out."""
_FILE_PARTS = 20
"""Parts in which blocks of files are left out, one for each profile. A good block is left out once, and then is sure."""
_OTHER_PARTS = 6
"""Parts in which blocks of no file are left out, once each file's was."""
_FILE_WINDOW = 16
"""Blocks of a file that are left out together, so that the others are still read in large pieces."""
_OTHER_WINDOW = 32
"""Blocks of no file that are left out together: as many of an inode table are read at once, whichever is needed."""


def left_out(items: Sequence[ProfileItem], starts: int, number: int, index: BlockIndex) -> Numbers:
    """Returns the blocks that the kernel is not warmed with, ascending.

    `items` are those of profile `number` of `starts` starts; `index` is that of their volume.
    """
    blocks, owners = blocks_of(items)
    if not len(blocks):
        return blocks
    touched = np.fromiter((item.touched for item in items), np.int64)[owners]
    unsure = ~is_sure(touched, starts)
    in_file = index.run_of(blocks) >= 0
    sure = blocks[~unsure]
    few = sure[np.argsort(_spread(sure + (number << 32)), kind="stable")[: min(_FEW, int(_SMALL * len(sure)))]]
    if unsure.sum() <= _LITTLE * len(blocks):
        return np.sort(few)
    doubted = unsure & (2 * touched < starts) & (starts == PROVEN_STARTS)
    untried = unsure & ~doubted
    if (untried & in_file).any():
        part = _part(blocks[untried & in_file], _FILE_WINDOW, _FILE_PARTS, number)
    else:
        part = _part(blocks[untried], _OTHER_WINDOW, _OTHER_PARTS, number)
    return np.unique(np.concatenate((few, blocks[doubted], part)))


def is_sure(touched: Numbers, starts: int) -> NDArray[np.bool_]:
    """Returns which blocks a profile of `starts` starts is sure of: most of them read these."""
    return 2 * touched > starts


def _part(blocks: Numbers, window: int, parts: int, number: int) -> Numbers:
    """Returns one part of some blocks, of those that are not empty."""
    own = _spread(blocks // window) % np.uint64(parts)
    there = np.unique(own)
    return np.asarray(blocks[own == there[number % len(there)]]) if len(there) else blocks


def _spread(numbers: Numbers) -> NDArray[np.uint64]:
    """Returns numbers that are evenly spread, the same everywhere (splitmix64)."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
