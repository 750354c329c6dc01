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

Placements follow, one per chunk or child, in order, as `placement` has them. Little-endian throughout.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from blockmap.errors import FormatError
from blockmap.format.chunker import MAX_BLOCKS, SPAN
from blockmap.format.digest import ABSENT, DIGEST_BYTES, FORMAT, HEADER, MAGIC, Digest, DigestKind, digest, header
from blockmap.format.extent import Extent, over
from blockmap.format.placement import Placement, PlacementTable

FANOUT: Final = 256
MAX_LEVEL: Final = 4
"""The highest level of a node: enough for 2^40 blocks with room to spare."""
MAX_NODE_BYTES: Final = 1 << 20
"""The limit on a stored node; 4,096 extents in as many chunks in as many packs take 0.37 MB."""
_DIGEST = np.dtype(f"V{DIGEST_BYTES}")


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
        placements: Iterable[Placement | None],
    ) -> None:
        self.starts, self.lengths, self.index, self.first = starts, lengths, index, first
        self.chunks = chunks
        self.blocks = blocks
        """Blocks of each chunk, 1 to 64."""
        self.placements = PlacementTable.of(placements)
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

    def with_placements(self, placements: Iterable[Placement | None]) -> "Leaf":
        """Returns the same leaf with other placements."""
        return _placed(self, placements)

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

    def __init__(
        self, level: int, slots: Sequence[int], children: Sequence[Digest], placements: Iterable[Placement | None]
    ) -> None:
        self.level = level
        self.slots = slots
        """Slots of the children, 0 to 255, ascending."""
        self.children = children
        self.placements = PlacementTable.of(placements)
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

    def with_placements(self, placements: Iterable[Placement | None]) -> "Inner":
        """Returns the same node with other placements."""
        return _placed(self, placements)

    def check(self) -> None:
        """Asserts every invariant of the format."""
        if not (1 <= self.level <= MAX_LEVEL and 0 < len(self.slots) == len(self.children) == len(self.placements)):
            raise FormatError(f"an inner node of level {self.level} with {len(self.slots)} children does not add up")
        if any(before >= after for before, after in zip(self.slots, self.slots[1:], strict=False)):
            raise FormatError("the children of an inner node are out of order")
        if ABSENT in self.children:
            raise FormatError("an inner node lists an absent child")


Node = Leaf | Inner

_NodeKind = TypeVar("_NodeKind", Leaf, Inner)


def _placed(node: _NodeKind, placements: Iterable[Placement | None]) -> _NodeKind:
    made = type(node).__new__(type(node))
    made.__dict__.update(node.__dict__)  # what was computed of the content, too
    made.placements = PlacementTable.of(placements)
    return made


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
    rows = np.array((below.starts, below.lengths, below.index, below.first), dtype=np.int32)
    chunks, blocks, places = list(below.chunks), list[int](), list[Placement | None]()
    may_continue = False
    for start, length, chunk, of, inside in upper:
        start -= base
        end = start + length
        low, high = np.searchsorted(rows[0], (start, end)).tolist()
        made: list[tuple[int, int, int, int]] = []
        right: list[tuple[int, int, int, int]] = []
        if high:
            at, count, number, skip = rows[:, high - 1].tolist()
            if at + count > end:  # it goes on behind
                right.append((end, at + count - end, number, skip + end - at))
        if low:
            at, count, number, skip = rows[:, low - 1].tolist()
            if at + count > start:
                low -= 1
                made.append((at, start - at, number, skip))
        if chunk is not None:
            may_continue = may_continue or chunk in chunks
            number = chunks.index(chunk) if chunk in chunks else len(chunks)
            if number == len(chunks):
                chunks.append(chunk)
                blocks.append(of)
                places.append(placements.get(chunk))
            made.append((start, length, number, inside))
        made += right
        new = np.array(made, dtype=np.int32).reshape(-1, 4).T
        rows = np.concatenate((rows[:, :low], new, rows[:, high:]), axis=1)
    if not rows.shape[1]:
        return None
    if may_continue and _continues(*rows).any():
        stored = {chunk: at for chunk, at in zip(chunks, (*below.placements, *places), strict=True) if at is not None}
        return leaf(over(list(upper), below.extents(base)), base, stored)
    used = list(dict.fromkeys(rows[2].tolist()))  # chunks are in order of first use
    order = np.array(used)
    rank = np.empty(len(chunks), dtype=np.uint16)
    rank[order] = np.arange(len(used))
    return Leaf(
        rows[0].astype(np.uint16),
        rows[1].astype(np.uint16),
        rank[rows[2]],
        rows[3].astype(np.uint8),
        [chunks[number] for number in used],
        np.append(below.blocks, np.array(blocks, dtype=np.uint8))[order],
        below.placements.chosen(order, places),
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
    if (at := node.placements.first_unknown()) is not None:
        raise FormatError(f"the node refers to {node.references[at].hex()}, which is not stored")
    return b"".join((head, node.content, node.placements.encode()))


def decode(frame: bytes, pack: Digest, expected: Digest) -> Node:
    """Parses a stored node that was read from `pack`. Raises FormatError for anything but the node named `expected`."""
    if len(frame) < HEADER.size or len(frame) > MAX_NODE_BYTES:
        raise FormatError(f"{len(frame)} bytes are no node: 16 to {MAX_NODE_BYTES} are expected")
    magic, kind, version, level, flags, count, zero = HEADER.unpack_from(frame)
    if (magic, kind, version, flags, zero) != (MAGIC, DigestKind.NODE, FORMAT, 0, 0) or level > MAX_LEVEL or not count:
        raise FormatError("the header is not that of a node")
    end, node = (_decode_leaf if level == 0 else _decode_inner)(frame, level, count)
    content = frame[HEADER.size : end]
    if digest(DigestKind.NODE, count, content, level) != expected:
        raise FormatError(f"the node is not the one named {expected.hex()}")
    node.placements = PlacementTable.decode(frame, end, len(node.references), pack)
    node.content, node.digest = content, expected
    node.check()
    return node


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
    blocks = np.frombuffer(frame, "u1", chunks, at + DIGEST_BYTES * chunks)
    return end, Leaf(starts, lengths, index, first, _digests(frame, at, chunks), blocks + np.uint8(1), ())


def _decode_inner(frame: bytes, level: int, count: int) -> tuple[int, Node]:
    at = HEADER.size
    end = at + (DIGEST_BYTES + 1) * count
    if count > FANOUT or len(frame) < end:
        raise FormatError(f"an inner node of {count} children does not fit in {len(frame)} bytes")
    return end, Inner(level, frame[at : at + count], _digests(frame, at + count, count), ())


def _digests(frame: bytes, at: int, count: int) -> list[Digest]:
    names: list[Digest] = np.frombuffer(frame, _DIGEST, count, at).tolist()  # in a quarter of the time of slices
    return names
