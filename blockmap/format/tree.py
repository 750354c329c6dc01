"""A volume's interval tree: an immutable Merkle B+-tree of extents with fixed spans.

A leaf covers 4,096 blocks, an inner node 256 children, and the height is the least that covers the volume; so a tree is
a function of its extents alone, not of its history: rewrite(build(a), edits) == build(edits over a), byte for byte.
Nodes are reached by a callable, `load(digest, placement)`, which may block; nothing here does I/O of its own.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from blockmap.errors import FormatError
from blockmap.format.chunker import SPAN
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.extent import Extent, over
from blockmap.format.node import FANOUT, MAX_LEVEL, Inner, Leaf, Node, leaf, leaf_over
from blockmap.format.placement import Placement

MAX_BLOCKS = 1 << 40
_FEW_EDITS = 32
"""Edits of a leaf below which it costs less to change its arrays than to make an object of each of its extents."""

Load = Callable[[Digest, Placement | None], Node]


@dataclass(frozen=True, slots=True)
class Root:
    """The top of a stored tree."""

    digest: Digest
    """ABSENT for a volume of zeros."""
    size: int
    """Blocks of the volume."""
    placement: Placement | None = None

    @property
    def level(self) -> int:
        return height(self.size)

    @property
    def is_placed(self) -> bool:
        """Returns True if it is known where the tree is stored, or there is nothing to store."""
        return self.placement is not None or self.digest == ABSENT


@dataclass(slots=True)
class Draft:
    """A tree some of whose nodes are not stored yet."""

    root: Root
    nodes: dict[Digest, Node] = field(default_factory=dict)
    """The new nodes; their placements of new chunks and children are None."""

    def check(self) -> None:
        """Asserts that every node is new, sound and reachable, and that chunks and children of the base have placements."""
        reached: set[Digest] = set()
        waiting = [(self.root.digest, self.root.placement, self.root.level)]
        while waiting:
            name, place, level = waiting.pop()
            node = self.nodes.get(name)
            if node is None:
                if place is None and name != ABSENT:
                    raise FormatError(f"node {name.hex()} is neither in the draft nor stored: {self}")
                continue
            reached.add(name)
            _check_node(node, name, level)
            if isinstance(node, Inner):
                waiting.extend((child, at, level - 1) for child, at in zip(node.children, node.placements, strict=True))
        if reached != set(self.nodes):
            raise FormatError(f"nodes of the draft are not part of its tree: {self}")


def height(size: int) -> int:
    """Returns the level of the root of a volume of `size` blocks."""
    if not 0 < size <= MAX_BLOCKS:
        raise FormatError(f"a volume of {size} blocks is out of range: 1 to 2^40")
    level, covered = 0, SPAN
    while covered < size:
        level, covered = level + 1, covered * FANOUT
    if level > MAX_LEVEL:
        raise FormatError(f"a volume of {size} blocks is too large")
    return level


def coverage(level: int) -> int:
    """Returns the number of blocks that a node of a level covers."""
    return int(SPAN * FANOUT**level)


def cut_at_spans(extents: list[Extent]) -> Iterator[Extent]:
    """Yields the extents, cut at the edges of spans."""
    for extent in extents:
        start = extent.start
        while start < extent.end:
            end = min(extent.end, start - start % SPAN + SPAN)
            yield extent.piece(start, end)
            start = end


def build(extents: list[Extent], size: int, placements: dict[Digest, Placement]) -> Draft:
    """Builds the tree of ascending, disjoint extents; `placements` has those of the chunks already stored."""
    if extents and extents[-1].end > size:
        raise FormatError(f"an extent ends at block {extents[-1].end} of a volume of {size} blocks")
    spans = groupby(cut_at_spans(extents), key=lambda extent: extent.start // SPAN)
    leaves = ((span, leaf(over(list(own), []), span * SPAN, placements)) for span, own in spans)
    return assemble(((span, made) for span, made in leaves if made is not None), size)


def assemble(leaves: Iterable[tuple[int, Leaf]], size: int) -> Draft:
    """Builds the tree of `leaves`, which come in volume order, each with the number of its span."""
    draft = Draft(Root(ABSENT, size))
    row: list[tuple[int, Digest]] = []
    for span, made in leaves:
        draft.nodes[made.digest] = made
        row.append((span, made.digest))
    for level in range(1, height(size) + 1):
        above: list[tuple[int, Digest]] = []
        for parent, group in groupby(row, key=lambda item: item[0] // FANOUT):
            children = list(group)
            inner = Inner(
                level, [at % FANOUT for at, _ in children], [name for _, name in children], [None] * len(children)
            )
            draft.nodes[inner.digest] = inner
            above.append((parent, inner.digest))
        row = above
    if row:
        draft.root = Root(row[0][1], size)
    return draft


def grown(base: Root, size: int) -> Draft:
    """Returns the tree of the same extents in a volume of `size` blocks, which is no smaller: it has new nodes above the root."""
    digest, placement = base.digest, base.placement
    draft = Draft(Root(digest, size, placement))
    if digest != ABSENT:
        for level in range(base.level + 1, height(size) + 1):
            wrapper = Inner(level, [0], [digest], [placement])
            digest, placement = wrapper.digest, None
            draft.nodes[digest] = wrapper
        draft.root = Root(digest, size, placement)
    return draft


def rewrite(base: Root, edits: list[Extent], size: int, load: Load, placements: dict[Digest, Placement]) -> Draft:
    """Builds the tree of `edits` over `base`; loads only leaves that an edit covers in part. The volume may grow to `size`."""
    if size < base.size:
        raise FormatError(f"a volume cannot shrink from {base.size} to {size} blocks")
    if edits and edits[-1].end > size:
        raise FormatError(f"an extent ends at block {edits[-1].end} of a volume of {size} blocks")
    draft = grown(base, size)

    def reach(name: Digest, place: Placement | None, level: int) -> Node:
        return draft.nodes.get(name) or _load_at(level, name, place, load)

    def edited_leaf(base_block: int, own: list[Extent], name: Digest, place: Placement | None) -> Leaf | None:
        below: list[Extent] = []
        known = placements
        if name != ABSENT and sum(extent.length for extent in own) < min(SPAN, size - base_block):
            node = reach(name, place, 0)
            assert isinstance(node, Leaf)
            if len(own) <= _FEW_EDITS:
                return leaf_over(own, node, base_block, placements)
            below = node.extents(base_block)
            old = {chunk: at for chunk, at in zip(node.chunks, node.placements, strict=True) if at is not None}
            known = {**{extent.chunk: placements[extent.chunk] for extent in own if extent.chunk in placements}, **old}
        return leaf(over(own, below), base_block, known)

    def visit(
        level: int, block: int, own: list[Extent], name: Digest, place: Placement | None
    ) -> tuple[Digest, Placement | None]:
        """Returns the node that replaces `name`, which covers the blocks from `block` on."""
        if not own or (name == ABSENT and all(extent.chunk is None for extent in own)):
            return name, place
        made: Node | None
        if level == 0:
            made = edited_leaf(block, own, name, place)
        else:
            children: dict[int, tuple[Digest, Placement | None]] = {}
            if name != ABSENT:
                node = reach(name, place, level)
                assert isinstance(node, Inner)
                children = dict(zip(node.slots, zip(node.children, node.placements, strict=True), strict=True))
            span = coverage(level - 1)
            for slot, group in groupby(own, key=lambda extent: (extent.start - block) // span):
                below = children.get(slot, (ABSENT, None))
                children[slot] = visit(level - 1, block + slot * span, list(group), *below)
            kept = {slot: child for slot, child in sorted(children.items()) if child[0] != ABSENT}
            made = (
                Inner(level, list(kept), [c[0] for c in kept.values()], [c[1] for c in kept.values()]) if kept else None
            )
        if made is None:
            return ABSENT, None
        if made.digest == name:
            return name, place
        draft.nodes[made.digest] = made
        return made.digest, None

    above = draft.root
    digest, placement = visit(above.level, 0, list(cut_at_spans(edits)), above.digest, above.placement)
    draft.root = Root(digest, size, placement)
    _drop_unreachable(draft)
    return draft


def find(root: Root, span: int, load: Load) -> Leaf | None:
    """Returns the leaf that covers blocks [span * 4096, (span + 1) * 4096); None if all of them are zero."""
    if not 0 <= span * SPAN < root.size:
        raise FormatError(f"span {span} lies outside of a volume of {root.size} blocks")
    digest, placement = root.digest, root.placement
    for level in range(root.level, -1, -1):
        if digest == ABSENT:
            return None
        node = _load_at(level, digest, placement, load)
        if isinstance(node, Leaf):
            return node
        child = node.child(span // FANOUT ** (level - 1) % FANOUT)
        digest, placement = child or (ABSENT, None)
    return None


def _check_node(node: Node, name: Digest, level: int) -> None:
    if (node.digest, node.level) != (name, level):
        raise FormatError(
            f"node {node.digest.hex()} of level {node.level} stands in place of {name.hex()} of level {level}"
        )
    node.check()


def _load_at(level: int, name: Digest, place: Placement | None, load: Load) -> Node:
    node = load(name, place)
    if node.level != level:
        raise FormatError(f"node {name.hex()} has level {node.level} where {level} is expected")
    return node


def _drop_unreachable(draft: Draft) -> None:
    """Removes nodes that a later step replaced: the wrappers of a root that grew."""
    reached: set[Digest] = set()
    waiting = [draft.root.digest]
    while waiting:
        name = waiting.pop()
        if name in draft.nodes and name not in reached:
            reached.add(name)
            node = draft.nodes[name]
            if isinstance(node, Inner):
                waiting.extend(node.children)
    draft.nodes = {name: node for name, node in draft.nodes.items() if name in reached}
