"""SHA-256 digests that name chunks, nodes and versions.

A digest is taken over a header of 16 bytes and a body, so that no two kinds of object can share a name:

    offset  size  type  meaning
    0       4     s     magic `bmap`
    4       1     u8    kind: 1 chunk, 2 node, 3 version
    5       1     u8    format, 1
    6       1     u8    level: 0 for a leaf, else the height above the leaves; 0 for chunks and versions
    7       1     u8    flags, 0
    8       4     u32   count: blocks of a chunk, extents of a leaf, children of an inner node, bytes of a version
    12      4     u32   zero

Little-endian. The body of a chunk is the SHA-256 of each of its blocks, one after the other; the body of a node or of a
version is its encoded content.
"""

import struct
from enum import IntEnum
from hashlib import sha256
from typing import NewType

from blockmap.errors import FormatError
from blockmap.format import BLOCK

Digest = NewType("Digest", bytes)

DIGEST_BYTES = 32
ABSENT = Digest(bytes(DIGEST_BYTES))
"""Stands in place of a digest where nothing is stored, which reads as zeros."""

MAGIC = b"bmap"
FORMAT = 1
HEADER = struct.Struct("<4sBBBBII")

_HELD = 2047
"""Bytes that hashlib hashes at most without releasing the interpreter's lock."""


class DigestKind(IntEnum):
    CHUNK = 1
    NODE = 2
    VERSION = 3


def header(kind: DigestKind, count: int, level: int = 0) -> bytes:
    """Returns the 16 bytes in front of the body of a `kind` with `count` members."""
    return HEADER.pack(MAGIC, kind, FORMAT, level, 0, count, 0)


def digest(kind: DigestKind, count: int, body: bytes | memoryview, level: int = 0) -> Digest:
    """Returns the digest that names an object."""
    state = sha256(header(kind, count, level))
    state.update(body)
    return Digest(state.digest())


def block_digests(data: bytes | memoryview) -> bytes:
    """Returns the SHA-256 of each block of `data`, one after the other: 32 bytes a block."""
    view = memoryview(data)
    return b"".join([sha256(view[at : at + BLOCK]).digest() for at in range(0, len(view), BLOCK)])


def held_block_digests(data: bytes | memoryview) -> bytes:
    """Returns the same as `block_digests`, and never releases the interpreter's lock: for servers with many busy threads.

    hashlib releases the lock for 2,048 bytes or more, once a block, and taking it back costs some 50 microseconds where
    the processors are busy; the digests of a whole chunk of 64 KiB take 60.
    """
    view = memoryview(data)
    found = []
    for at in range(0, len(view), BLOCK):
        state = sha256(view[at : at + _HELD])
        state.update(view[at + _HELD : at + 2 * _HELD])
        state.update(view[at + 2 * _HELD : at + BLOCK])
        found.append(state.digest())
    return b"".join(found)


def chunk_digest(digests: bytes) -> Digest:
    """Returns the name of a chunk, from the digests of its blocks."""
    return digest(DigestKind.CHUNK, len(digests) // DIGEST_BYTES, digests)


def from_hex(text: str) -> Digest:
    """Parses 64 lower-case hexadecimal digits. Raises FormatError for anything else."""
    if len(text) != 2 * DIGEST_BYTES or text.strip("0123456789abcdef"):
        raise FormatError(f"{text[:80]!r} is not a digest: 64 lower-case hexadecimal digits are expected")
    return Digest(bytes.fromhex(text))
