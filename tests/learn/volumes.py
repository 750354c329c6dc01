"""A block index and traces of a made-up volume."""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from blockmap.format import BLOCK, trace
from blockmap.format.digest import Digest
from blockmap.format.extent import Extent
from blockmap.format.filemap import File
from blockmap.format.trace import NEW, READ, Trace, TraceHead
from blockmap.learn.block_index import BlockIndex

SIZE = 1 << 20
Read = tuple[int, int, int]
"""A read: microseconds since the open, bytes, offset in bytes."""


def digest(seed: object) -> Digest:
    return Digest(sha256(str(seed).encode()).digest())


ROOT = digest("root")
EXTENTS = [
    Extent(0, 4, digest("super"), 4, 0),
    Extent(10, 20, digest("a"), 64, 5),
    Extent(30, 10, digest("b"), 10, 0),
    Extent(100, 64, digest("c"), 64, 0),
    Extent(5000, 1, digest("d"), 1, 0),
]
FILES = [File(b"bin/sh", 25 * BLOCK - 5, [(12, 18), (100, 7)]), File(b"etc/passwd", 100, [(30, 1)])]


def block_index(extents: Sequence[Extent] = EXTENTS, files: Sequence[File] = FILES, root: Digest = ROOT) -> BlockIndex:
    return BlockIndex(root, extents, files)


def trace_of(
    reads: Sequence[Read], ready_ms: int = 0, flags: int = NEW, profile: int = 0, root: Digest = ROOT
) -> Trace:
    head = TraceHead(
        "redis", "default", digest("version"), root, SIZE * BLOCK, 17, flags, ready_ms=ready_ms, profile=profile
    )
    return trace.decode(trace.encode_head(head) + np.array(list(reads), READ).tobytes())


def blocks(start: int, length: int, time_us: int = 0) -> Read:
    return time_us, length * BLOCK, start * BLOCK
