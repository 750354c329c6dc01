"""Nodes of a tree: leaves, inner nodes, and how they are stored.

A stored node is the header of `digest`, its content, and its placements. The digest covers header and content; the
placements are advice about where the referenced chunks and children are stored, and may differ between stores.

Content of a leaf (span 4,096 blocks), arrays of n = count extents and m chunks, where m is 1 + the highest index:

    size  type       meaning
    2n    u16        start of each extent in the span, ascending
    2n    u16        length
    2n    u16        chunk index
    n     u8         first block in the chunk
    32m   digest     chunks in order of first use
    m     u8         blocks of the chunk - 1

Blocks that no extent covers are zero; neighbours that continue each other are coalesced; no chunk is unused. Content of an
inner node with n = count children at `level` 1 or more, each of which covers 256^(level - 1) leaves:

    n     u8         slot, ascending
    32n   digest     child; an absent child is a span of zeros

Placements, one reference per chunk or child, in order:

    4     u32        number of packs p
    32p   digest     packs; all zero stands for the pack that holds this node
    16    -          per reference: pack u16, codec u8, zero u8, offset u32, stored u32, raw u32

Little-endian throughout.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from blockmap.errors import FormatError
from blockmap.format.chunker import MAX_BLOCKS, SPAN
from blockmap.format.digest import ABSENT, DIGEST_BYTES, FORMAT, HEADER, MAGIC, Digest, DigestKind, digest, header
from blockmap.format.extent import Extent, over

FANOUT: Final = 256
MAX_LEVEL: Final = 4
"""The highest level of a node: enough for 2^40 blocks with room to spare."""
MAX_NODE_BYTES: Final = 1 << 20
"""The limit on a stored node; 4,096 extents in as many chunks in as many packs take 0.37 MB."""

_REFERENCE = np.dtype(
    [("pack", "<u2"), ("codec", "u1"), ("zero", "u1"), ("offset", "<u4"), ("stored", "<u4"), ("raw", "<u4")]
)
_REFERENCE_ROW = struct.Struct("<HBBIII")
"""The same for one reference."""


class Placement(NamedTuple):
    """The place where a chunk or node is stored: advice, since the bytes read are verified against its digest."""

    pack: Digest
    codec: int
    offset: int
    """Bytes from the beginning of the pack."""
    stored: int
    """Bytes in the pack."""
    raw: int
    """Bytes after decompression."""


Placements = Sequence[Placement | None]


class Leaf:
    """The extents of one span of 4,096 blocks."""

    level: Final = 0

    def __init__(
        self,
        starts: npt.NDArray[np.uint16],
        lengths: npt.NDArray[np.uint16],
        index: npt.NDArray[np.uint16],
        first: npt.NDArray[np.uint8],
        chunks: Sequence[Digest],
        blocks: npt.NDArray[np.uint8],
        placements: Placements,
    ) -> None:
        self.starts, self.lengths, self.index, self.first = starts, lengths, index, first
        self.chunks = chunks
        self.blocks = blocks
        """Blocks of each chunk, 1 to 64."""
        self.placements = placements
        """The placement of each chunk; None for one that is not stored yet."""

    @cached_property
    def content(self) -> bytes:
        return b"".join(
            (
                self.starts.astype("<u2").tobytes(),
                self.lengths.astype("<u2").tobytes(),
                self.index.astype("<u2").tobytes(),
                self.first.tobytes(),
                *self.chunks,
                (self.blocks - np.uint8(1)).tobytes(),
            )
        )

    @cached_property
    def digest(self) -> Digest:
        return digest(DigestKind.NODE, len(self.starts), self.content)

    @property
    def references(self) -> Sequence[Digest]:
        return self.chunks

    def extents(self, base: int = 0) -> list[Extent]:
        """Returns the extents in order; `base` is the volume block at which the span begins."""
        chunks, blocks = self.chunks, self.blocks.tolist()
        return [
            Extent(base + start, length, chunks[at], blocks[at], first)
            for start, length, at, first in zip(
                self.starts.tolist(), self.lengths.tolist(), self.index.tolist(), self.first.tolist(), strict=True
            )
        ]

    def with_placements(self, placements: Placements) -> "Leaf":
        return Leaf(self.starts, self.lengths, self.index, self.first, self.chunks, self.blocks, placements)

    def check(self) -> None:
        """Asserts every invariant of the format."""
        count, chunks = len(self.starts), len(self.chunks)
        starts, lengths = self.starts.astype(np.int64), self.lengths.astype(np.int64)
        index, first = self.index.astype(np.int64), self.first.astype(np.int64)
        blocks = self.blocks.astype(np.int64)
        if not (count and chunks == int(index.max()) + 1 == len(blocks) == len(self.placements)):
            raise FormatError(f"a leaf of {count} extents and {chunks} chunks does not add up")
        ends = starts + lengths
        if not (lengths.min() > 0 and (starts[1:] >= ends[:-1]).all() and ends[-1] <= SPAN):
            raise FormatError("the extents of a leaf are empty, out of order or outside of its span")
        if blocks.min() < 1 or blocks.max() > MAX_BLOCKS or (first + lengths > blocks[index]).any():
            raise FormatError("an extent of a leaf reaches past the end of its chunk")
        seen = np.maximum.accumulate(index)
        if index[0] != 0 or (seen[1:] - seen[:-1] > 1).any() or seen[-1] + 1 != chunks:
            raise FormatError("the chunks of a leaf are not in order of first use")
        if len(set(self.chunks)) != chunks or ABSENT in self.chunks:
            raise FormatError("a leaf lists a chunk twice, or an absent one")
        if _continues(starts, lengths, index, first).any():
            raise FormatError("neighbouring extents of a leaf are not coalesced")


class Inner:
    """The children of a node above the leaves."""

    def __init__(self, level: int, slots: Sequence[int], children: Sequence[Digest], placements: Placements) -> None:
        self.level = level
        self.slots = slots
        """Slots of the children, 0 to 255, ascending."""
        self.children = children
        self.placements = placements
        """The placement of each child; None for one that is not stored yet."""

    @cached_property
    def content(self) -> bytes:
        return bytes(self.slots) + b"".join(self.children)

    @cached_property
    def digest(self) -> Digest:
        return digest(DigestKind.NODE, len(self.slots), self.content, self.level)

    @property
    def references(self) -> Sequence[Digest]:
        return self.children

    def child(self, slot: int) -> tuple[Digest, Placement | None] | None:
        """Returns the child in a slot; None if it is absent."""
        try:
            at = self.slots.index(slot)
        except ValueError:
            return None
        return self.children[at], self.placements[at]

    def with_placements(self, placements: Placements) -> "Inner":
        return Inner(self.level, self.slots, self.children, placements)

    def check(self) -> None:
        """Asserts every invariant of the format."""
        if not (1 <= self.level <= MAX_LEVEL and 0 < len(self.slots) == len(self.children) == len(self.placements)):
            raise FormatError(f"an inner node of level {self.level} with {len(self.slots)} children does not add up")
        if any(before >= after for before, after in zip(self.slots, self.slots[1:], strict=False)):
            raise FormatError("the children of an inner node are out of order")
        if ABSENT in self.children:
            raise FormatError("an inner node lists an absent child")


Node = Leaf | Inner


def leaf(extents: Iterable[Extent], base: int, placements: dict[Digest, Placement]) -> Leaf | None:
    """Returns the leaf of coalesced `extents` within the span that begins at block `base`; None if there are none."""
    chunks: dict[Digest, int] = {}
    blocks: list[int] = []
    rows = []
    for start, length, chunk, of, first in extents:
        if chunk is None:
            continue
        at = chunks.setdefault(chunk, len(chunks))
        if at == len(blocks):
            blocks.append(of)
        rows.append((start - base, length, at, first))
    if not rows:
        return None
    table = np.array(rows, dtype=np.uint16)
    return Leaf(
        table[:, 0].copy(),
        table[:, 1].copy(),
        table[:, 2].copy(),
        table[:, 3].astype(np.uint8),
        list(chunks),
        np.array(blocks, dtype=np.uint8),
        [placements.get(chunk) for chunk in chunks],
    )


def leaf_over(upper: Sequence[Extent], below: Leaf, base: int, placements: Mapping[Digest, Placement]) -> Leaf | None:
    """Returns the leaf of `upper` laid over `below`, in the span that begins at block `base`; None if nothing is left.

    It is that of `over`, without an object for each extent of `below`: for a few extents.
    """
    starts, lengths, ids, first = (each.tolist() for each in (below.starts, below.lengths, below.index, below.first))
    chunks, blocks, places = list(below.chunks), below.blocks.tolist(), list(below.placements)
    for start, length, chunk, of, inside in upper:
        start -= base
        end = start + length
        low = bisect_right(starts, start)
        high = bisect_left(starts, end, low)
        rows: list[tuple[int, int, int, int]] = []
        if low and starts[low - 1] + lengths[low - 1] > start:  # it is cut, and may go on behind
            low -= 1
            if starts[low] < start:
                rows.append((starts[low], start - starts[low], ids[low], first[low]))
        if chunk is not None:
            number = chunks.index(chunk) if chunk in chunks else len(chunks)
            if number == len(chunks):
                chunks.append(chunk)
                blocks.append(of)
                places.append(placements.get(chunk))
            rows.append((start, length, number, inside))
        if high > low and (left := starts[high - 1] + lengths[high - 1] - end) > 0:
            rows.append((end, left, ids[high - 1], first[high - 1] + end - starts[high - 1]))
        for column, values in zip(
            (starts, lengths, ids, first), zip(*rows, strict=True) if rows else [()] * 4, strict=True
        ):
            column[low:high] = values
    if not starts:
        return None
    table = np.array((starts, lengths, ids, first), dtype=np.int64)
    if _continues(*table).any():
        known = {chunk: place for chunk, place in zip(chunks, places, strict=True) if place is not None}
        return leaf(over(list(upper), below.extents(base)), base, known)
    used, at, inverse = np.unique(table[2], return_index=True, return_inverse=True)
    order = np.argsort(at)  # chunks are in order of first use
    rank = np.empty(len(order), dtype=np.uint16)
    rank[order] = np.arange(len(order))
    kept = used[order].tolist()
    return Leaf(
        table[0].astype(np.uint16),
        table[1].astype(np.uint16),
        rank[inverse],
        table[3].astype(np.uint8),
        [chunks[number] for number in kept],
        np.array([blocks[number] for number in kept], dtype=np.uint8),
        [places[number] for number in kept],
    )


def _continues(
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    index: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Returns for each extent but the first if it continues the one before it."""
    found: npt.NDArray[np.bool_] = (
        (starts[1:] == starts[:-1] + lengths[:-1])
        & (index[1:] == index[:-1])
        & (first[1:] == first[:-1] + lengths[:-1])
    )
    return found


def encode(node: Node) -> bytes:
    """Returns the stored form of a node, all of whose placements must be known."""
    head = header(DigestKind.NODE, len(node.starts) if isinstance(node, Leaf) else len(node.slots), node.level)
    packs: dict[Digest, int] = {}
    table: list[bytes] = []
    for place in node.placements:
        if place is None:
            raise FormatError(f"the node refers to {node.references[len(table)].hex()}, which is not stored")
        pack, codec, offset, stored, raw = place
        table.append(_REFERENCE_ROW.pack(packs.setdefault(pack, len(packs)), codec, 0, offset, stored, raw))
    return b"".join((head, node.content, len(packs).to_bytes(4, "little"), *packs, *table))


def decode(frame: bytes, pack: Digest, expected: Digest) -> Node:
    """Parses a stored node that was read from `pack`. Raises FormatError for anything but the node named `expected`."""
    if len(frame) < HEADER.size or len(frame) > MAX_NODE_BYTES:
        raise FormatError(f"{len(frame)} bytes are no node: 16 to {MAX_NODE_BYTES} are expected")
    magic, kind, version, level, flags, count, zero = HEADER.unpack_from(frame)
    if (magic, kind, version, flags, zero) != (MAGIC, DigestKind.NODE, FORMAT, 0, 0) or level > MAX_LEVEL or not count:
        raise FormatError("the header is not that of a node")
    end, node = (_decode_leaf if level == 0 else _decode_inner)(frame, level, count)
    if digest(DigestKind.NODE, count, memoryview(frame)[HEADER.size : end], level) != expected:
        raise FormatError(f"the node is not the one named {expected.hex()}")
    placed = node.with_placements(_decode_placements(frame, end, len(node.references), pack))
    placed.check()
    return placed


def _decode_leaf(frame: bytes, level: int, count: int) -> tuple[int, Node]:
    at = HEADER.size
    if count > SPAN or len(frame) < at + 7 * count:
        raise FormatError(f"a leaf of {count} extents does not fit in {len(frame)} bytes")
    starts = np.frombuffer(frame, "<u2", count, at)
    lengths = np.frombuffer(frame, "<u2", count, at + 2 * count)
    index = np.frombuffer(frame, "<u2", count, at + 4 * count)
    first = np.frombuffer(frame, "u1", count, at + 6 * count)
    at += 7 * count
    chunks = int(index.max()) + 1
    end = at + (DIGEST_BYTES + 1) * chunks
    if chunks > count or len(frame) < end:
        raise FormatError(f"a leaf of {chunks} chunks does not fit in {len(frame)} bytes")
    digests = _digests(frame, at, chunks)
    blocks = np.frombuffer(frame, "u1", chunks, at + DIGEST_BYTES * chunks)
    return end, Leaf(starts, lengths, index, first, digests, blocks + np.uint8(1), [None] * chunks)


def _decode_inner(frame: bytes, level: int, count: int) -> tuple[int, Node]:
    at = HEADER.size
    end = at + (DIGEST_BYTES + 1) * count
    if count > FANOUT or len(frame) < end:
        raise FormatError(f"an inner node of {count} children does not fit in {len(frame)} bytes")
    return end, Inner(level, frame[at : at + count], _digests(frame, at + count, count), [None] * count)


def _decode_placements(frame: bytes, at: int, count: int, home: Digest) -> list[Placement]:
    packs = int.from_bytes(frame[at : at + 4], "little")
    at += 4
    if packs > count or len(frame) != at + DIGEST_BYTES * packs + _REFERENCE.itemsize * count:
        raise FormatError(f"the placements of {count} references in {packs} packs do not fit the node's length")
    names = [home if name == ABSENT else name for name in _digests(frame, at, packs)]
    table = np.frombuffer(frame, _REFERENCE, count, at + DIGEST_BYTES * packs)
    if table["zero"].any() or (table["pack"] >= packs).any():
        raise FormatError("a placement of the node names no pack")
    where = [names[pack] for pack in table["pack"].tolist()]
    columns = (table[name].tolist() for name in ("codec", "offset", "stored", "raw"))
    # Not by Placement's own constructor, which is Python's: there are hundreds in a leaf.
    return list(map(partial(tuple.__new__, Placement), zip(where, *columns, strict=True)))


def _digests(frame: bytes, at: int, count: int) -> list[Digest]:
    return [Digest(frame[start : start + DIGEST_BYTES]) for start in range(at, at + DIGEST_BYTES * count, DIGEST_BYTES)]
