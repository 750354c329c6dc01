"""Packs: immutable objects that hold many chunks or nodes, the unit of transport.

    offset  size  type    meaning
    0       4     s       magic `bmpk`
    4       1     u8      format, 1
    5       1     u8      kind: 1 chunks, 2 nodes, 3 bundle
    6       2     u16     zero
    8       4     u32     count of entries n
    12      4     u32     count of frames m
    16      16    -       salt: no two packs have one name, so the name of a condemned pack is never used again
    32      44n   -       per entry: digest 32, frame u32, offset in the frame u32, length u32
    ..      16m   -       per frame: offset in the pack u32, stored u32, raw u32, codec u8, zero 3
    ..      -     -       frames

Little-endian. All before the frames is the head; its SHA-256 is the pack's name. A frame is verified by its content.
Each chunk or node has a frame of its own.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Final

from blockmap.errors import FormatError
from blockmap.format.digest import Digest
from blockmap.format.placement import Placement

MAGIC: Final = b"bmpk"
FORMAT: Final = 1
TARGET_BYTES: Final = 16 << 20
"""Bytes; a pack is closed before it grows beyond this."""

_HEAD = struct.Struct("<4sBBHII16s")
_ENTRY = struct.Struct("<32sIII")
_FRAME = struct.Struct("<IIIB3s")


class PackKind(IntEnum):
    CHUNKS = 1
    NODES = 2
    BUNDLE = 3


@dataclass(frozen=True, slots=True)
class PackedFrame:
    """One chunk or node as it is stored."""

    digest: Digest
    codec: int
    data: bytes | memoryview
    raw: int
    """Bytes after decompression."""


@dataclass(frozen=True, slots=True)
class Pack:
    name: Digest
    parts: list[bytes | memoryview]
    """The bytes to store, in order."""
    placements: list[Placement]
    """The placements of the frames, in order."""


def head_bytes(frames: int) -> int:
    """Returns the length of the head of a pack with `frames` frames of one entry each."""
    return _HEAD.size + (_ENTRY.size + _FRAME.size) * frames


def seal(kind: PackKind, frames: Sequence[PackedFrame], salt: bytes) -> Pack:
    """Makes a pack."""
    offset = head_bytes(len(frames))
    head = [_HEAD.pack(MAGIC, FORMAT, kind, 0, len(frames), len(frames), salt)]
    head += [_ENTRY.pack(frame.digest, at, 0, frame.raw) for at, frame in enumerate(frames)]
    offsets = []
    for frame in frames:
        offsets.append(offset)
        head.append(_FRAME.pack(offset, len(frame.data), frame.raw, frame.codec, bytes(3)))
        offset += len(frame.data)
    joined = b"".join(head)
    name = Digest(sha256(joined).digest())
    placements = [
        Placement(name, frame.codec, at, len(frame.data), frame.raw) for frame, at in zip(frames, offsets, strict=True)
    ]
    return Pack(name, [joined, *(frame.data for frame in frames)], placements)


@dataclass(frozen=True, slots=True)
class PackHead:
    """The contents of a pack, as its head lists them."""

    kind: PackKind
    entries: list[tuple[Digest, Placement]]
    length: int
    """Length of the head in bytes."""
    end: int
    """Length of the whole pack in bytes."""


def head_length(start: bytes) -> int:
    """Returns the length of the head of a pack, given the first 32 bytes."""
    if len(start) < _HEAD.size:
        raise FormatError(f"{len(start)} bytes are too short for a pack")
    magic, version, kind, zero, count, frames, _ = _HEAD.unpack_from(start)
    if (magic, version, zero) != (MAGIC, FORMAT, 0) or kind not in (PackKind.CHUNKS, PackKind.NODES):
        raise FormatError("the object is not a pack of chunks or nodes of format 1")
    if count != frames or head_bytes(count) > TARGET_BYTES:
        raise FormatError(f"a pack of {count} entries in {frames} frames does not add up")
    return head_bytes(count)


def parse_head(data: bytes, name: Digest) -> PackHead:
    """Parses the head of the pack `name` from the pack's first bytes. Raises FormatError."""
    length = head_length(data)
    if len(data) < length:
        raise FormatError(f"the pack's head has {length} bytes, but only {len(data)} are there")
    if sha256(memoryview(data)[:length]).digest() != name:
        raise FormatError(f"the pack's head does not match its name {name.hex()}")
    kind, count = data[5], int.from_bytes(data[8:12], "little")
    frames = list(_FRAME.iter_unpack(memoryview(data)[length - _FRAME.size * count : length]))
    entries = []
    end = length
    for digest, at, offset, raw in _ENTRY.iter_unpack(memoryview(data)[_HEAD.size : _HEAD.size + _ENTRY.size * count]):
        if at >= count or offset or raw != frames[at][2] or frames[at][0] < length:
            raise FormatError("an entry of the pack points outside of its frames")
        start, stored, _, codec, zero = frames[at]
        if any(zero):
            raise FormatError("a frame of the pack uses what this release of blockmap does not know: upgrade it")
        entries.append((Digest(digest), Placement(name, codec, start, stored, raw)))
        end = max(end, start + stored)
    return PackHead(PackKind(kind), entries, length, end)
