"""Bundles: the blocks that starts of one workload read of one version, in the order in which they read them.

A bundle is a pack of a kind of its own.

    offset  size  type    meaning
    0       4     s       magic `bmpk`
    4       1     u8      format, 1
    5       1     u8      kind, 3
    6       2     u16     flags: 1 ported: made from starts of another version
    8       4     u32     count of entries n: nodes, then chunks
    12      4     u32     count of frames m
    16      16    -       salt
    32      44n   -       per entry: digest 32, frame u32, offset in the frame u32, length u32
    ..      16m   -       per frame: offset in the bundle u32, stored u32, raw u32, codec u8, zero 3
    ..      4     u32     count of nodes
    ..      4     u32     count of absent blocks a
    ..      4     u32     bytes of the reading list, stored
    ..      4     u32     the same before compression
    ..      8     u64     blocks of data that the whole image has
    ..      1c    u8      per chunk: its blocks - 1
    ..      8c    u64     per chunk: which of its blocks are in the bundle, a bit each
    ..      32a   -       digests of the chunks' other blocks, in order
    ..      -     -       reading list, one zstd frame
    ..      32    -       SHA-256 of all before: the end of the head
    ..      -     -       frames

Nodes above the chunks are in the first frames, all others in the last. The blocks of a chunk lie one after the other in one frame;
the chunk may be listed again further down, with others of its blocks. They are verified together with the digests of the absent
blocks; a node is verified by its own digest. The reading list says where in the volume, and in which files, the same blocks are.
Little-endian.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final, NamedTuple

import numpy as np

from blockmap.errors import FormatError
from blockmap.format import BLOCK, reading_list
from blockmap.format.chunker import MAX_BLOCKS
from blockmap.format.digest import DIGEST_BYTES, Digest, chunk_digest, held_block_digests
from blockmap.format.pack import PackKind
from blockmap.format.reading_list import ReadItem

MAGIC: Final = b"bmpk"
FORMAT: Final = 1
MAX_HEAD_BYTES: Final = 64 << 20
_FRAME_BYTES = 32 << 10
"""Bytes after which a frame is closed. A frame is fetched whole, so small ones let a host skip what it has from another image with
the same base: after redis, nginx fetched 50 % of its bundle, and all of it with frames of 1 MiB."""
_MOST_FRAME_BYTES = 1 << 20
"""Bytes of a frame that readers accept after decompression; writers of other releases may choose larger frames."""

_PORTED = 1
_HEAD = struct.Struct("<4sBBHII16s")
_ENTRY = struct.Struct("<32sIII")
_FRAME = struct.Struct("<IIIB3s")
_COUNTS = struct.Struct("<IIIIQ")


class Piece(NamedTuple):
    """The part of a chunk that a bundle holds."""

    chunk: Digest
    blocks: int
    """Blocks of the whole chunk."""
    mask: int
    """The blocks that the bundle holds, a bit each."""
    absent: bytes
    """Digests of the blocks that the bundle lacks, in order."""
    frame: int
    offset: int
    """Bytes from the beginning of the frame, after decompression."""


class NodeAt(NamedTuple):
    """A node that a bundle holds, and where."""

    node: Digest
    frame: int
    offset: int
    """Bytes from the beginning of the frame, after decompression."""
    length: int


class FrameAt(NamedTuple):
    offset: int
    """Bytes from the beginning of the bundle."""
    stored: int
    raw: int
    codec: int

    @property
    def end(self) -> int:
        return self.offset + self.stored


@dataclass(frozen=True, slots=True)
class BundleHead:
    """The contents of a bundle, as its head lists them."""

    nodes: list[NodeAt]
    pieces: list[Piece]
    frames: list[FrameAt]
    read_items: list[ReadItem]
    image_blocks: int
    """Blocks of data in the whole image."""
    length: int
    """Length of the head in bytes."""
    ported: bool
    """True if the bundle was made from starts of another version, so that blocks which are new in this one are missing."""

    @property
    def listed_frames(self) -> int:
        """Returns the number of frames with the blocks of the reading list; those behind hold what starts may read as well."""
        left = sum(own.blocks for own in self.read_items)
        for piece in self.pieces:
            if left <= 0:
                return piece.frame
            left -= piece.mask.bit_count()
        return len(self.frames)

    def within(self, blocks: int) -> "BundleHead":
        """Returns the head without what no volume of `blocks` blocks has: what lies outside of it, or is more than all of it."""
        items, left = [], blocks
        for own in self.read_items:
            length = min(own.blocks, blocks - own.start, left)
            if length > 0:
                items.append(own._replace(blocks=length))
                left -= length
        pieces, left = [], blocks
        for piece in self.pieces:
            left -= piece.mask.bit_count()
            if left >= 0:
                pieces.append(piece)
        return replace(self, read_items=items, pieces=pieces, image_blocks=min(self.image_blocks, blocks))

    @property
    def end(self) -> int:
        """Returns the length of the whole bundle in bytes."""
        return self.frames[-1].end if self.frames else self.length


def encode(
    nodes: Sequence[tuple[Digest, bytes]],
    chunks: Iterable[tuple[Digest, int, bytes | memoryview]],
    read_items: Sequence[ReadItem],
    image_blocks: int,
    salt: bytes,
    seal: Callable[[bytes], tuple[int, bytes | memoryview]],
    compress: Callable[[bytes], bytes],
    further: Sequence[tuple[Digest, bytes]] = (),
    ported: bool = False,
) -> tuple[list[bytes], int]:
    """Returns the parts of a bundle, and the length of its head in bytes.

    `nodes` are names and stored forms, parents first; `chunks` are names, masks of the blocks to take, and whole contents,
    in first-touch order; `further` nodes come last, for reads of other blocks.
    """
    stored: list[tuple[int, bytes | memoryview]] = []
    raws: list[int] = []
    frame = bytearray()
    node_entries: list[bytes] = []
    pieces: list[bytes] = []
    masks, blocks, absent = [], bytearray(), []

    def close() -> None:
        """Compresses the open frame, so that only one frame at a time is in memory uncompressed."""
        if frame:
            stored.append(seal(bytes(frame)))
            raws.append(len(frame))
            frame.clear()

    def put(entries: list[bytes], name: Digest, data: bytes) -> None:
        if frame and len(frame) + len(data) > _FRAME_BYTES:
            close()
        entries.append(_ENTRY.pack(name, len(stored), len(frame), len(data)))
        frame.extend(data)

    for name, node in nodes:
        put(node_entries, name, node)
    for name, mask, content in chunks:
        count = len(content) // BLOCK
        digests = held_block_digests(content)
        there = [at for at in range(count) if mask >> at & 1]
        put(pieces, name, b"".join(content[at * BLOCK : (at + 1) * BLOCK] for at in there))
        masks.append(mask)
        blocks.append(count - 1)
        absent += [digests[at * DIGEST_BYTES :][:DIGEST_BYTES] for at in range(count) if not mask >> at & 1]
    for name, node in further:
        put(node_entries, name, node)
    close()
    listed = reading_list.encode(read_items)
    packed = compress(listed)
    tables = b"".join(
        (
            _COUNTS.pack(len(node_entries), len(absent), len(packed), len(listed), image_blocks),
            blocks,
            np.array(masks, "<u8").tobytes(),
            *absent,
            packed,
        )
    )
    entries = [*node_entries, *pieces]
    offset = length = _HEAD.size + len(entries) * _ENTRY.size + len(stored) * _FRAME.size + len(tables) + DIGEST_BYTES
    table = []
    for (kind, data), raw in zip(stored, raws, strict=True):
        table.append(_FRAME.pack(offset, len(data), raw, kind, bytes(3)))
        offset += len(data)
    start = _HEAD.pack(MAGIC, FORMAT, PackKind.BUNDLE, ported * _PORTED, len(entries), len(stored), salt)
    head = b"".join((start, *entries, *table, tables))
    return [head + sha256(head).digest(), *(bytes(data) for _, data in stored)], length


def decode_head(data: bytes | memoryview, expand: Callable[[memoryview, int], bytes]) -> BundleHead:
    """Parses the head, which is all of `data`. Raises FormatError."""
    view = memoryview(data)
    end = len(view) - DIGEST_BYTES
    if end < _HEAD.size or sha256(view[:end]).digest() != view[end:]:
        raise FormatError("the head of the bundle is damaged: its last 32 bytes are not the SHA-256 of the rest")
    magic, version, kind, flags, count, frame_count, _ = _HEAD.unpack_from(view)
    if (magic, version, kind) != (MAGIC, FORMAT, PackKind.BUNDLE) or flags & ~_PORTED:
        raise FormatError("the object is not a bundle of format 1")
    try:
        return _parse(view, end, count, frame_count, bool(flags & _PORTED), expand)
    except (struct.error, ValueError) as error:
        raise FormatError(f"the tables of the bundle do not add up: {error}") from error


def measure(read: Callable[[int, int], bytes | memoryview]) -> tuple[int, int]:
    """Returns the length of a bundle and of its head in bytes, neither verified. Raises FormatError.

    `read(start, end)` returns bytes of the bundle.
    """
    magic, version, kind, flags, count, frame_count, _ = _HEAD.unpack(read(0, _HEAD.size))
    if (magic, version, kind) != (MAGIC, FORMAT, PackKind.BUNDLE) or flags & ~_PORTED:
        raise FormatError("the object is not a bundle of format 1")
    start = _HEAD.size + count * _ENTRY.size
    counts = start + frame_count * _FRAME.size
    last = counts - _FRAME.size if frame_count else counts
    tail = read(last, counts + _COUNTS.size)
    nodes, absent, packed, _, _ = _COUNTS.unpack_from(tail, counts - last)
    head = counts + _COUNTS.size + 9 * (count - nodes) + DIGEST_BYTES * (absent + 1) + packed
    if nodes > count or head > MAX_HEAD_BYTES:
        raise FormatError(f"a bundle of {count} entries, {nodes} of them nodes, does not add up")
    if not frame_count:
        return head, head
    offset, stored, *_ = _FRAME.unpack_from(tail)
    return offset + stored, head


def is_good(piece: Piece, data: bytes | memoryview) -> bool:
    """Returns True if `data`, the blocks of a piece, belong to its chunk."""
    here = held_block_digests(data)
    if len(here) != piece.mask.bit_count() * DIGEST_BYTES:
        return False
    digests, present, absent = [], 0, 0
    for block in range(piece.blocks):
        if piece.mask >> block & 1:
            digests.append(here[present : present + DIGEST_BYTES])
            present += DIGEST_BYTES
        else:
            digests.append(piece.absent[absent : absent + DIGEST_BYTES])
            absent += DIGEST_BYTES
    return chunk_digest(b"".join(digests)) == piece.chunk


def spread(piece: Piece, data: bytes | memoryview) -> bytearray:
    """Returns the whole chunk, with the blocks of the piece in their places and zeros for the others."""
    content = bytearray(piece.blocks * BLOCK)
    at = 0
    for block in range(piece.blocks):
        if piece.mask >> block & 1:
            content[block * BLOCK : (block + 1) * BLOCK] = data[at : at + BLOCK]
            at += BLOCK
    return content


def joined(piece: Piece, data: bytes | memoryview, other: Piece, more: bytes | memoryview) -> tuple[Piece, memoryview]:
    """Joins two parts of one chunk; the piece returned has no digests of absent blocks, so it cannot be verified again."""
    content = bytearray()
    at = there = 0
    for block in range(piece.blocks):
        first, second = piece.mask >> block & 1, other.mask >> block & 1
        if first:
            content += data[at : at + BLOCK]
        elif second:
            content += more[there : there + BLOCK]
        at, there = at + first * BLOCK, there + second * BLOCK
    return piece._replace(mask=piece.mask | other.mask, absent=b""), memoryview(content)


def _parse(
    view: memoryview, end: int, count: int, frame_count: int, ported: bool, expand: Callable[[memoryview, int], bytes]
) -> BundleHead:
    at = _HEAD.size
    entries = list(_ENTRY.iter_unpack(view[at : at + count * _ENTRY.size]))
    at += count * _ENTRY.size
    frames: list[FrameAt] = []
    for offset, stored, raw, kind, zero in _FRAME.iter_unpack(view[at : at + frame_count * _FRAME.size]):
        if stored > raw:
            raise FormatError("a frame of the bundle is longer than its content")
        if any(zero) or raw > max(_MOST_FRAME_BYTES, MAX_BLOCKS * BLOCK):
            raise FormatError("a frame of the bundle uses what this release of blockmap does not know: upgrade it")
        if offset != (frames[-1].end if frames else len(view)):
            raise FormatError("the frames of the bundle do not follow each other")
        frames.append(FrameAt(offset, stored, raw, kind))
    at += frame_count * _FRAME.size
    node_count, absent, packed, listed, image_blocks = _COUNTS.unpack_from(view, at)
    at += _COUNTS.size
    chunks = count - node_count
    if node_count > count or len(entries) != count or len(frames) != frame_count or listed > MAX_HEAD_BYTES:
        raise FormatError(f"a bundle of {count} entries, {node_count} of them nodes, does not add up")
    blocks = bytes(view[at : at + chunks])
    masks: np.ndarray[Any, Any] = np.frombuffer(view, "<u8", chunks, at + chunks)
    at += 9 * chunks
    others = bytes(view[at : at + absent * DIGEST_BYTES])
    at += absent * DIGEST_BYTES
    if at + packed != end:
        raise FormatError("the tables of the bundle do not end where its head does")
    read_items = reading_list.decode(expand(view[at:end], listed))
    for _, frame, offset, length in entries:
        if frame >= frame_count or offset + length > frames[frame].raw:
            raise FormatError("an entry of the bundle points outside of its frames")
    nodes = [NodeAt(Digest(name), frame, offset, length) for name, frame, offset, length in entries[:node_count]]
    pieces = list(_pieces(entries[node_count:], blocks, masks.tolist(), others))
    return BundleHead(nodes, pieces, frames, read_items, image_blocks, len(view), ported)


def _pieces(
    entries: Sequence[tuple[bytes, int, int, int]], blocks: bytes, masks: Sequence[int], others: bytes
) -> Iterator[Piece]:
    at = 0
    for (name, frame, offset, length), less, mask in zip(entries, blocks, masks, strict=True):
        count = less + 1
        if count > MAX_BLOCKS or mask >> count or length != mask.bit_count() * BLOCK:
            raise FormatError("a chunk of the bundle has not the blocks that it says")
        end = at + (count - mask.bit_count()) * DIGEST_BYTES
        yield Piece(Digest(name), count, mask, others[at:end], frame, offset)
        at = end
    if at != len(others):
        raise FormatError("the bundle has digests of blocks that are in none of its chunks")
