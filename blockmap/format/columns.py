"""Tables of numbers and paths are stored column by column: an array each, little-endian, then each path as length u16 and bytes.

A column of paths holds 1 + a path's index, or 0 for none. Counts are stored elsewhere.
"""

import struct
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

_LENGTH = struct.Struct("<H")


def encode(rows: Sequence[Sequence[int]], kinds: Sequence[str], paths: Collection[bytes]) -> list[bytes]:
    """Returns the parts of a table; `kinds` has numpy's type of each column."""
    columns = zip(*rows, strict=True) if rows else [[]] * len(kinds)
    return [
        *(np.array(column, kind).tobytes() for column, kind in zip(columns, kinds, strict=True)),
        *(_LENGTH.pack(len(path)) + path for path in paths),
    ]


def decode(
    body: bytes, at: int, kinds: Sequence[str], count: int, paths: int
) -> tuple[list[list[int]], list[bytes | None], int]:
    """Parses a table that begins at byte `at`: returns its columns, None and the paths, and where it ends.

    Raises struct.error or ValueError where the body is too short.
    """
    columns = []
    for kind in kinds:
        column: np.ndarray[Any, Any] = np.frombuffer(body, kind, count, at)
        columns.append(column.tolist())
        at += column.nbytes
    files: list[bytes | None] = [None]
    for _ in range(paths):
        (length,) = _LENGTH.unpack_from(body, at)
        files.append(body[at + _LENGTH.size : at + _LENGTH.size + length])
        at += _LENGTH.size + length
    return columns, files, at
