"""Reading lists name the blocks of one volume that starts read, with their files, in first-touch order.

They tell hosts with which blocks to warm the kernel's caches.

Count u32, paths u32, then an array each of start u64, blocks u32, path u32 (1 + its index, 0 for none) and at u32 (block of the
file); then each path as length u16 and bytes. Little-endian.
"""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from blockmap.errors import FormatError

_LIST = struct.Struct("<II")
_LENGTH = struct.Struct("<H")
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
    columns = zip(*rows, strict=True) if rows else [[]] * len(_COLUMNS)
    return b"".join(
        [
            _LIST.pack(len(rows), len(paths)),
            *(np.array(column, kind).tobytes() for column, kind in zip(columns, _COLUMNS, strict=True)),
            *(_LENGTH.pack(len(path)) + path for path in paths),
        ]
    )


def decode(body: bytes) -> list[ReadItem]:
    """Parses a list. Raises FormatError, struct.error or ValueError."""
    count, paths = _LIST.unpack_from(body)
    at = _LIST.size
    columns = []
    for kind in _COLUMNS:
        column: np.ndarray[Any, Any] = np.frombuffer(body, kind, count, at)
        columns.append(column.tolist())
        at += column.nbytes
    files: list[bytes | None] = [None]
    for _ in range(paths):
        (length,) = _LENGTH.unpack_from(body, at)
        files.append(body[at + _LENGTH.size : at + _LENGTH.size + length])
        at += _LENGTH.size + length
    if at != len(body) or any(path > paths for path in columns[2]):
        raise FormatError("the reading list of the bundle does not add up")
    return [ReadItem(start, blocks, files[path], where) for start, blocks, path, where in zip(*columns, strict=True)]
