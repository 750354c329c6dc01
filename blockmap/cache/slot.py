"""Encodes slots of the cache's data file: a chunk or a node, with what is needed to trust it after a crash.

    offset  size  type    meaning
    0       4     s       magic `bmcs`
    4       1     u8      format, 1
    5       3     -       zero
    8       32    digest  what the slot holds
    40      8     u64     mask of the blocks present; all ones where there are more than 64 blocks
    48      4     u32     length in bytes, the last block filled up with zeros
    52      4     u32     zero
    56      8n    u64     xxh3-64 of each block, 0 for one that is absent
    ..      8     u64     xxh3-64 of the header up to here

The header takes whole blocks of 4096 bytes; block i of the content follows at (header + i) * 4096. Little-endian.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from blockmap.format import BLOCK

MAGIC = b"bmcs"
FORMAT = 1
MAX_BYTES = 1 << 24
"""Bytes of content: chunks and nodes are far smaller, but a damaged index must not ask for more memory than this."""
Row = tuple[int, bytes, int, int]
"""A slot on record: position of its header, digest, length in bytes, mask (64 bits, signed in SQLite's way or not)."""

_HEAD = struct.Struct("<4sB3s32sQII")
_SUM = struct.Struct("<Q")


_Number = TypeVar("_Number", int, NDArray[np.int64])


def blocks_of(length: _Number) -> _Number:
    """Returns the blocks that `length` bytes of content take."""
    return -(-length // BLOCK)


def header_bytes(length: _Number) -> _Number:
    """Returns the bytes of the header of a slot for `length` bytes of content: whole blocks."""
    return blocks_of(_HEAD.size + (blocks_of(length) + 1) * _SUM.size) * BLOCK


def whole_mask(length: int) -> int:
    """Returns the mask of a slot that holds everything."""
    return (1 << min(blocks_of(length), 64)) - 1


def has(mask: int, block: int) -> bool:
    """Returns True if a block is present; content of more than 64 blocks is always whole."""
    return block >= 64 or bool(mask >> block & 1)


def present(length: int, mask: int) -> int:
    """Returns how many blocks of content are present."""
    blocks = blocks_of(length)
    return mask.bit_count() if blocks <= 64 else blocks


def joined(old: bytes, new: memoryview, new_mask: int) -> memoryview:
    """Joins the blocks of `new` that `new_mask` has with the others of `old`, which may lack absent ones at its end."""
    both = bytearray(old[: len(new)].ljust(len(new), b"\0"))
    for block in range(blocks_of(len(new))):
        if has(new_mask, block):
            both[block * BLOCK : (block + 1) * BLOCK] = new[block * BLOCK : (block + 1) * BLOCK]
    return memoryview(both)


def encode_header(digest: bytes, mask: int, data: memoryview) -> bytes:
    """Returns the header for content of which the blocks `mask` are present."""
    length = len(data)
    sums = [xxh3_64_intdigest(padded(data, block)) if has(mask, block) else 0 for block in range(blocks_of(length))]
    head = _HEAD.pack(MAGIC, FORMAT, bytes(3), digest, mask, length, 0) + struct.pack(f"<{len(sums)}Q", *sums)
    return (head + _SUM.pack(xxh3_64_intdigest(head))).ljust(header_bytes(length), b"\0")


def padded(data: memoryview, block: int) -> bytes | memoryview:
    """Returns a block of content, filled up with zeros."""
    piece = data[block * BLOCK : (block + 1) * BLOCK]
    return piece if len(piece) == BLOCK else bytes(piece).ljust(BLOCK, b"\0")


@dataclass(frozen=True, slots=True)
class Header:
    digest: bytes
    mask: int
    length: int
    sums: tuple[int, ...]


def decode_header(data: bytes) -> Header | None:
    """Parses the header of a slot; returns None if it is damaged."""
    if len(data) < _HEAD.size + _SUM.size:
        return None
    magic, version, zero, digest, mask, length, zero4 = _HEAD.unpack_from(data)
    end = _HEAD.size + blocks_of(length) * _SUM.size
    if (magic, version, zero, zero4) != (MAGIC, FORMAT, bytes(3), 0) or len(data) < end + _SUM.size:
        return None
    if _SUM.unpack_from(data, end)[0] != xxh3_64_intdigest(data[:end]):
        return None
    return Header(digest, mask, length, struct.unpack_from(f"<{blocks_of(length)}Q", data, _HEAD.size))


def verified(raw: bytes, digest: bytes, length: int, mask: int) -> bytes | None:
    """Returns the content of a slot whose bytes are `raw`; None if it is not what it should be, or damaged."""
    head_bytes = header_bytes(length)
    header = decode_header(raw[:head_bytes])
    if header is None or (header.digest, header.length, header.mask) != (digest, length, mask):
        return None
    content = raw[head_bytes:]
    return None if any(_wrong(header, content)) else content


def is_lost(raw: bytes, length: int) -> bool:
    """Returns True if what is wrong with a slot is only that bytes of it are not there, which read as zeros.

    They were evicted when a kill kept the journal from noting it, or had not reached the disk when the host went down.
    """
    head_bytes = header_bytes(length)
    if not any(raw[:head_bytes]):
        return True
    header = decode_header(raw[:head_bytes])
    wrong = [] if header is None else list(_wrong(header, raw[head_bytes:]))
    return bool(wrong) and not any(map(any, wrong))


def _wrong(header: Header, content: bytes) -> Iterator[memoryview]:
    """Yields every block that is present and does not match its checksum; absent ones may be missing at the end."""
    view = memoryview(content)
    for block, expected in enumerate(header.sums):
        if has(header.mask, block):
            piece = view[block * BLOCK : (block + 1) * BLOCK]
            if len(piece) != BLOCK or xxh3_64_intdigest(piece) != expected:
                yield piece
