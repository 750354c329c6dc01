"""Fills small gaps between the blocks that starts read. It is pure.

No two starts touch exactly the same pages of a mapped file, and each page missed costs a round trip. Filling gaps of up to two
blocks takes 7 % more blocks, and left none missing over five starts of a Node.js server. A fast start, which has its blocks at
hand, also takes other paths through the program than the slow one that was recorded; so where nearly all blocks around are
read, larger gaps are filled as well, which takes another 1 to 3 %.
"""

from collections.abc import Sequence

import numpy as np

from blockmap.format.profile import ProfileItem
from blockmap.learn.block_index import BlockIndex, Numbers, blocks_of

_MOST_BLOCKS = 2
_CROWDED_BLOCKS = 8
_AROUND_BLOCKS = 32
"""Blocks on either side of a gap that count as around it."""
_CROWD = 42
"""Blocks around a gap that have to be read for larger gaps to be filled: two thirds."""
OF_OTHERS = 8
"""Blocks of a gap that is filled in a ported profile: pages differ more between versions, and the first start of a version is the
one that people see. Between two versions of redis-server 1 block was missing."""


def fill_gaps(items: Sequence[ProfileItem], index: BlockIndex, most_blocks: int = _MOST_BLOCKS) -> list[ProfileItem]:
    """Returns the items with the gaps of at most `most_blocks` between them filled.

    A gap lies in one file or in none; it is read with that of its neighbours that is read first.
    """
    blocks, owners = blocks_of(items)
    if len(blocks) < 2:
        return list(items)
    ascending = np.argsort(blocks)
    ordered, ranks = blocks[ascending], ascending
    sizes = np.diff(ordered) - 1
    runs = index.run_of(ordered)
    small = np.where(_around(ordered) >= _CROWD, max(most_blocks, _CROWDED_BLOCKS), most_blocks)
    gaps = np.flatnonzero((sizes > 0) & (sizes <= small) & (runs[1:] == runs[:-1]))
    steps = np.arange(1, int(small.max()) + 1)[:, None]
    wanted = sizes[gaps] >= steps
    new = (ordered[gaps] + steps)[wanted]
    near = np.broadcast_to(np.minimum(ranks[gaps], ranks[gaps + 1]), wanted.shape)[wanted]
    all_blocks = np.concatenate((blocks, new))
    all_ranks = np.concatenate((np.arange(len(blocks)), near))
    order = np.lexsort((all_blocks, all_ranks))
    owner = owners[all_ranks[order]]
    times = np.fromiter((item.time_ms for item in items), np.int64)
    touched = np.fromiter((item.touched for item in items), np.int64)
    return index.items(all_blocks[order], times[owner], touched[owner])


def _around(ordered: Numbers) -> Numbers:
    """Returns, for each gap between ascending blocks, the number of blocks near its ends."""
    first = np.searchsorted(ordered, ordered[:-1] - _AROUND_BLOCKS, "right")
    end = np.searchsorted(ordered, ordered[1:] + _AROUND_BLOCKS, "left")
    return end - first
