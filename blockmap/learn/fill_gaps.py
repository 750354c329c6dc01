"""What lies in small gaps between the blocks that starts read: pure.

No two starts touch quite the same pages of a mapped file. Over five starts of a Node.js server, one or two of 8,760 blocks of each
were not among those of another; filling gaps of up to two blocks takes 7 % more blocks, and left none missing. A miss is a
round trip, and the kernel's read-ahead makes it one for every chunk around. A start that is fast, as its blocks are there,
takes other ways through the program than the slow one that was recorded: where nearly all around is read, larger gaps are
filled as well, which takes another 1 to 3 %.
"""

from collections.abc import Sequence

import numpy as np

from blockmap.format.profile import ProfileItem
from blockmap.learn.block_index import BlockIndex, Numbers, blocks_of

_MOST_BLOCKS = 2
_CROWDED_BLOCKS = 8
_AROUND_BLOCKS = 32
"""On either side of a gap."""
_CROWD = 42
"""So many of these are read where it is crowded."""
OF_OTHERS = 8
"""The same of a profile of another version: with its pages, those that it did not read by chance differ too, and the start is
the first that anybody sees. Two versions of redis-server, which are one program, left 9 missing with 2, and 1 with 8."""


def fill_gaps(items: Sequence[ProfileItem], layout: BlockIndex, most_blocks: int = _MOST_BLOCKS) -> list[ProfileItem]:
    """The items, and the blocks of data in the gaps between them in one file, or in none: each comes with the one of its
    neighbours that is read first."""
    blocks, owners = blocks_of(items)
    if len(blocks) < 2:
        return list(items)
    ascending = np.argsort(blocks)
    ordered, ranks = blocks[ascending], ascending
    sizes = np.diff(ordered) - 1
    runs = layout.run_of(ordered)
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
    return layout.items(all_blocks[order], times[owner], touched[owner])


def _around(ordered: Numbers) -> Numbers:
    """Of each gap between ascending blocks: how many blocks are near its ends."""
    first = np.searchsorted(ordered, ordered[:-1] - _AROUND_BLOCKS, "right")
    end = np.searchsorted(ordered, ordered[1:] + _AROUND_BLOCKS, "left")
    return end - first
