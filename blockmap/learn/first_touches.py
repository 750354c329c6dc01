"""Extracts from a trace the blocks that the start read, in the order of their first reads. It is pure."""

import numpy as np

from blockmap.format import BLOCK
from blockmap.format.profile import ProfileItem
from blockmap.format.trace import Trace
from blockmap.learn.block_index import BlockIndex


def first_touches(trace: Trace, index: BlockIndex) -> list[ProfileItem]:
    """Returns the first touches of a trace until the program was ready, without zeros; `index` is that of its volume."""
    reads = trace.reads
    if trace.head.ready_ms:
        reads = reads[reads["time_us"] <= trace.head.ready_ms * 1000]
    times_us, offsets, lengths = (reads[name].astype(np.int64) for name in ("time_us", "offset", "length"))
    lows = index.pack(offsets // BLOCK)
    highs = index.pack(-(-(offsets + lengths) // BLOCK))
    first = np.full(index.blocks, -1, np.int64)
    """The read that first touched each block of data, or -1."""
    for number, (low, high) in enumerate(zip(lows.tolist(), highs.tolist(), strict=True)):
        part = first[low:high]
        part[part < 0] = number
    seen = np.flatnonzero(first >= 0)
    order = seen[np.argsort(first[seen], kind="stable")]
    return index.items(index.unpack(order), times_us[first[order]] // 1000, np.ones_like(order))
