"""What lies in small gaps between the blocks that starts read: pure.

No two starts touch quite the same pages of a mapped file. Over five starts of a Node.js server, one or two of 8,760 blocks of each
were not among those of another; filling gaps of up to two blocks takes 7 % more blocks, and left none missing. A miss is a
round trip, and the kernel's read-ahead makes it one for every chunk around.
"""

from collections.abc import Sequence

import numpy as np

from blockmap.format.profile import Item
from blockmap.learn.layout import Layout, blocks_of

MOST_BLOCKS = 2
OF_OTHERS = 8
"""The same of a profile of another version: with its pages, those that it did not read by chance differ too, and the start is
the first that anybody sees. Two versions of redis-server, which are one program, left 9 missing with 2, and 1 with 8."""


def filled(items: Sequence[Item], layout: Layout, most_blocks: int = MOST_BLOCKS) -> list[Item]:
    """The items, and the blocks of data in the gaps between them in one file, or in none: each comes with the one of its
    neighbours that is read first."""
    blocks, owners = blocks_of(items)
    if len(blocks) < 2:
        return list(items)
    ascending = np.argsort(blocks)
    ordered, ranks = blocks[ascending], ascending
    sizes = np.diff(ordered) - 1
    runs = layout.run_of(ordered)
    gaps = np.flatnonzero((sizes > 0) & (sizes <= most_blocks) & (runs[1:] == runs[:-1]))
    new = np.concatenate([ordered[gaps] + step for step in range(1, most_blocks + 1)])
    near = np.minimum(ranks[gaps], ranks[gaps + 1])
    wanted = np.concatenate([sizes[gaps] >= step for step in range(1, most_blocks + 1)])
    new, near = new[wanted], np.tile(near, most_blocks)[wanted]
    all_blocks = np.concatenate((blocks, new))
    all_ranks = np.concatenate((np.arange(len(blocks)), near))
    order = np.lexsort((all_blocks, all_ranks))
    owner = owners[all_ranks[order]]
    times = np.fromiter((item.time_ms for item in items), np.int64)
    touched = np.fromiter((item.touched for item in items), np.int64)
    return layout.items(all_blocks[order], times[owner], touched[owner])
