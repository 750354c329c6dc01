"""Reading lists name the blocks of one volume that starts read, with their files, in first-touch order.

They tell hosts with which blocks to warm the kernel's caches.

Count u32, paths u32, then an array each of start u64, blocks u32, path u32 (1 + its index, 0 for none) and at u32 (block of the
file); then each path as length u16 and bytes. Little-endian.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from blockmap.errors import FormatError
from blockmap.format import columns

_LIST = struct.Struct("<II")
_COLUMNS = ("<u8", "<u4", "<u4", "<u4")


class ReadItem(NamedTuple):
    """Consecutive blocks of the volume that a start reads, in one file or in none."""

    start: int
    """First block in the volume."""
    blocks: int
    path: bytes | None
    at: int
    """First block in the file."""


def encode(read_items: Sequence[ReadItem]) -> bytes:
    """Returns the list as a bundle holds it, before compression."""
    paths = {path: at + 1 for at, path in enumerate(dict.fromkeys(r.path for r in read_items if r.path is not None))}
    rows = [(r.start, r.blocks, 0 if r.path is None else paths[r.path], r.at) for r in read_items]
    return b"".join(
        [
            _LIST.pack(len(rows), len(paths)),
            *columns.encode(rows, _COLUMNS, paths),
        ]
    )


def decode(body: bytes) -> list[ReadItem]:
    """Parses a list. Raises FormatError, struct.error or ValueError."""
    count, paths = _LIST.unpack_from(body)
    table, files, at = columns.decode(body, _LIST.size, _COLUMNS, count, paths)
    if at != len(body) or any(path > paths for path in table[2]):
        raise FormatError("the reading list of the bundle does not add up")
    return [ReadItem(start, blocks, files[path], where) for start, blocks, path, where in zip(*table, strict=True)]
