"""What one start read for the first time, and in which order: pure."""

import numpy as np

from blockmap.format import BLOCK
from blockmap.format.profile import ProfileItem
from blockmap.format.trace import Trace
from blockmap.learn.block_index import BlockIndex


def first_touches(trace: Trace, layout: BlockIndex) -> list[ProfileItem]:
    """First touches of a trace of the volume that `layout` is of, until the program was ready; zeros are left out."""
    reads = trace.reads
    if trace.head.ready_ms:
        reads = reads[reads["time_us"] <= trace.head.ready_ms * 1000]
    times_us, offsets, lengths = (reads[name].astype(np.int64) for name in ("time_us", "offset", "length"))
    lows = layout.pack(offsets // BLOCK)
    highs = layout.pack(-(-(offsets + lengths) // BLOCK))
    first = np.full(layout.blocks, -1, np.int64)
    """The read that touched each block of data."""
    for number, (low, high) in enumerate(zip(lows.tolist(), highs.tolist(), strict=True)):
        part = first[low:high]
        part[part < 0] = number
    seen = np.flatnonzero(first >= 0)
    order = seen[np.argsort(first[seen], kind="stable")]
    return layout.items(layout.unpack(order), times_us[first[order]] // 1000, np.ones_like(order))
