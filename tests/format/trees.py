"""Maps of extents and stored trees for tests: made-up chunks, and a dict per block as the model."""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from blockmap.format import node
from blockmap.format.chunker import SPAN
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.extent import Extent, zeros
from blockmap.format.node import Inner, Leaf, Node
from blockmap.format.placement import Placement
from blockmap.format.tree import Draft, Root, coverage
from blockmap.store.packs import NodeRef
from blockmap.store.walk import LoadNodes, nodes

CHUNKS = [(Digest(hashlib.sha256(bytes([seed])).digest()), 1 + 7 * seed % 64) for seed in range(1, 25)]
"""Chunks by name and number of blocks; a tree does not depend on their content."""

SIZES = [1, 100, SPAN - 96, SPAN, 3 * SPAN, coverage(1), coverage(1) + 5, 3 * coverage(1), coverage(2)]
"""Sizes of volumes with heights 0, 1 and 2, at and off the edges."""

Model = dict[int, tuple[Digest, int]]
"""Maps blocks of the volume to a chunk and a block in it; absent blocks are zero."""


def place_of(chunk: Digest) -> Placement:
    """Returns the placement of a made-up chunk."""
    return Placement(Digest(hashlib.sha256(chunk).digest()), chunk[0] % 2, chunk[1], 1 + chunk[2], 4096)


PLACES = {chunk: place_of(chunk) for chunk, _ in CHUNKS}


def edges(size: int) -> list[int]:
    """Returns the blocks at which mistakes are likely: edges of spans, of inner nodes, of the volume."""
    spots = {0, SPAN, 2 * SPAN, 255 * SPAN, coverage(1), coverage(1) + SPAN, 2 * coverage(1), 200 * coverage(1), size}
    return sorted(spot for spot in spots if spot <= size)


@st.composite
def maps(draw: st.DrawFn, size: int, most: int = 12, with_zeros: bool = True) -> list[Extent]:
    """Draws disjoint, ascending extents of a volume of `size` blocks, not coalesced."""
    pieces = []
    lengths = st.sampled_from([1, 2, 50, SPAN, 2 * SPAN + 7, coverage(1), coverage(1) + SPAN])
    for _ in range(draw(st.integers(0, most))):
        start = max(draw(st.sampled_from(edges(size))) + draw(st.integers(-70, 150)), 0)
        if with_zeros and draw(st.integers(0, 3)) == 0:
            pieces.append(zeros(start, start + draw(lengths)))
        else:
            chunk, blocks = draw(st.sampled_from(CHUNKS))
            first = draw(st.integers(0, blocks - 1))
            if draw(st.booleans()):  # at its place in every map, so that pieces meet again
                start = start // 64 * 64 + first
            pieces.append(Extent(start, draw(st.integers(1, blocks - first)), chunk, blocks, first))
    found: list[Extent] = []
    at = 0
    for piece in sorted(pieces, key=lambda piece: piece.start):
        end = min(piece.end, size)
        start = max(at, piece.start)
        if start < end:
            cut = draw(st.integers(start + 1, end))
            found += [piece.piece(start, cut)] + ([piece.piece(cut, end)] if cut < end else [])
            at = end
    return found


def blocks_of(extents: list[Extent]) -> Model:
    """Returns the model of a map without zeros."""
    return {
        extent.start + at: (extent.chunk, extent.first + at)
        for extent in extents
        if extent.chunk is not None
        for at in range(extent.length)
    }


def written(model: Model, edits: list[Extent]) -> Model:
    """Returns the model with `edits` over it, block by block."""
    keys = sorted(model)
    after = dict(model)
    for edit in edits:
        for block in keys[bisect_left(keys, edit.start) : bisect_right(keys, edit.end - 1)]:
            del after[block]
    return after | blocks_of(edits)


def as_map(model: Model) -> list[Extent]:
    """Returns the coalesced map of a model."""
    of = dict(CHUNKS)
    found: list[Extent] = []
    for block, (chunk, first) in sorted(model.items()):
        last = found[-1] if found else None
        if last and (last.end, last.chunk, last.first + last.length) == (block, chunk, first):
            found[-1] = last._replace(length=last.length + 1)
        else:
            found.append(Extent(block, 1, chunk, of[chunk], first))
    return found


class Nodes:
    """Nodes stored as bytes and read through placements; each load is counted."""

    def __init__(self) -> None:
        self.frames: dict[Placement, bytes] = {}
        self.places: dict[Digest, Placement] = {}
        self.loads: list[Digest] = []
        self.requests = 0

    def load(self, name: Digest, place: Placement | None) -> Node:
        assert place is not None, f"nothing says where {name.hex()} is"
        self.loads.append(name)
        return node.decode(self.frames[place], place.pack, name)

    def load_many(self, refs: Sequence[NodeRef]) -> list[Node]:
        self.requests += 1
        return [self.load(*ref) for ref in refs]

    def store(self, draft: Draft) -> Root:
        """Stores the new nodes of a draft, children first."""
        draft.check()

        def put(name: Digest, known: Placement | None) -> Placement | None:
            if name not in draft.nodes:
                return known
            if name in self.places:
                return self.places[name]
            made = draft.nodes[name]
            if isinstance(made, Inner):
                places = [put(child, at) for child, at in zip(made.children, made.placements, strict=True)]
            else:
                places = [at or place_of(chunk) for chunk, at in zip(made.chunks, made.placements, strict=True)]
            frame = node.encode(made.with_placements(places))
            place = Placement(place_of(name).pack, 0, 16, len(frame), len(frame))
            self.frames[place], self.places[name] = frame, place
            return place

        return replace(draft.root, placement=put(draft.root.digest, draft.root.placement))


def check(root: Root, load_many: LoadNodes) -> None:
    """Asserts every invariant of a tree and its nodes."""
    for span, made in nodes(root, load_many):
        made.check()
        if isinstance(made, Leaf):
            assert span * SPAN + int(made.starts[-1]) + int(made.lengths[-1]) <= root.size


def spans(root: Root, kept: Nodes) -> list[tuple[int, int, Digest, int]]:
    """Returns all nodes with their half-open range of blocks, digest and level, without the code under test."""
    found: list[tuple[int, int, Digest, int]] = []

    def walk(name: Digest, place: Placement | None, level: int, start: int) -> None:
        if name == ABSENT:
            return
        found.append((start, start + coverage(level), name, level))
        assert place is not None
        made = node.decode(kept.frames[place], place.pack, name)
        if not isinstance(made, Leaf):
            for slot, child, at in zip(made.slots, made.children, made.placements, strict=True):
                walk(child, at, level - 1, start + slot * coverage(level - 1))

    walk(root.digest, root.placement, root.level, 0)
    return found
