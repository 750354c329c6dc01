"""Walks trees level by level from the root, many nodes at once, whatever loads them (`Packs.nodes`, or a cache)."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from blockmap.errors import BlockmapError, Corrupt
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.node import FANOUT, Inner, Leaf, Node
from blockmap.format.tree import Root, grown, height
from blockmap.store.packs import NodeRef, raised

LoadNodes = Callable[[Sequence[NodeRef]], Sequence[Node | BlockmapError]]
"""Returns nodes in order, with the error in place of one that cannot be read; or raises it, which ends the walk."""

_AT_ONCE = 512
"""Nodes that are loaded at once: leaves are some 14 KB as stored and 25 KB in memory."""


class Spot(NamedTuple):
    """A place in a tree that a walk comes to."""

    ref: NodeRef
    span: int
    """The first span below it."""


Select = Callable[[int, list[Spot]], list[Spot]]
"""Says which of a level's nodes the walk goes on with, and in what order."""


def above(spans: Collection[int]) -> Select:
    """Returns what chooses the nodes of a tree that lead to some spans, and their leaves."""

    def select(level: int, row: list[Spot]) -> list[Spot]:
        covered = _spans(level)
        wanted = {span - span % covered for span in spans}
        return [spot for spot in row if spot.span in wanted]

    return select


def visit(root: Root, load: LoadNodes, select: Select | None = None) -> Iterator[tuple[int, Node | BlockmapError]]:
    """Yields nodes, parents first and each level in volume order, or the error in place of one, whose children are left out.

    Each comes with the number of the first span below it.
    """
    row = [] if root.digest == ABSENT else [Spot((root.digest, root.placement), 0)]
    for level in range(root.level, -1, -1):
        chosen = row if select is None else select(level, row)
        row = []
        for start in range(0, len(chosen), _AT_ONCE):
            batch = chosen[start : start + _AT_ONCE]
            for (_, span), found in zip(batch, _loaded(level, [spot.ref for spot in batch], load), strict=True):
                yield span, found
                if isinstance(found, Inner):
                    row += [Spot(ref, span + slot * _spans(level - 1)) for slot, ref in _children(found).items()]


def nodes(root: Root, load: LoadNodes) -> Iterator[tuple[int, Node]]:
    """Yields all nodes, each with the number of the first span below it; raises the error of one that cannot be read."""
    return ((span, raised(found)) for span, found in visit(root, load))


def leaves(root: Root, load: LoadNodes, select: Select | None = None) -> Iterator[tuple[int, Leaf]]:
    """Yields the leaves in volume order, each with the number of its span; raises the error of a node that cannot be read."""
    for span, found in visit(root, load, select):
        node = raised(found)
        if isinstance(node, Leaf):
            yield span, node


def packs_below(roots: Iterable[Root], load: LoadNodes) -> set[Digest]:
    """Returns all packs that trees refer to, those of their nodes included; raises the error of a node that cannot be read."""
    seen: set[NodeRef] = set()

    def unseen(level: int, row: list[Spot]) -> list[Spot]:
        new = {spot.ref: spot for spot in row if spot.ref not in seen}
        seen.update(new)
        return list(new.values())

    packs: set[Digest] = set()
    for root in roots:
        for _, leaf in leaves(root, load, unseen):
            packs.update(leaf.placements.ends())
    return packs | {place.pack for _, place in seen if place is not None}


def diff(left: Root, right: Root, load: LoadNodes) -> Iterator[tuple[int, Leaf | None, Leaf | None]]:
    """Yields the spans whose leaves differ, in order, with both leaves; loads only nodes whose digests differ.

    The lower of two trees is compared as that of a volume of the other's size, which has the same leaves.
    """
    size = max(left.size, right.size)
    one, two = grown(left, size), grown(right, size)
    made = one.nodes | two.nodes
    absent: NodeRef = (ABSENT, None)
    row = [(0, (one.root.digest, one.root.placement), (two.root.digest, two.root.placement))]
    for level in range(height(size), -1, -1):
        row, differing = [], [pair for pair in row if pair[1][0] != pair[2][0]]
        for start in range(0, len(differing), _AT_ONCE // 2):
            batch = differing[start : start + _AT_ONCE // 2]
            refs = [ref for _, *pair in batch for ref in pair if ref[0] != ABSENT and ref[0] not in made]
            loaded = zip(refs, _loaded(level, refs, load), strict=True)
            found: dict[Digest, Node] = {**made, **{ref[0]: raised(node) for ref, node in loaded}}
            for span, *pair in batch:
                a, b = (found.get(ref[0]) for ref in pair)
                if level == 0:
                    assert not isinstance(a, Inner)
                    assert not isinstance(b, Inner)
                    yield span, a, b
                    continue
                below, other = _children(a), _children(b)
                row += [
                    (span + slot * _spans(level - 1), below.get(slot, absent), other.get(slot, absent))
                    for slot in sorted({*below, *other})
                ]


def _loaded(level: int, refs: Sequence[NodeRef], load: LoadNodes) -> list[Node | BlockmapError]:
    """Loads nodes that are expected at a level."""
    return [
        Corrupt(f"node {ref[0].hex()} has level {found.level} where {level} is expected")
        if not isinstance(found, BlockmapError) and found.level != level
        else found
        for ref, found in zip(refs, load(refs) if refs else (), strict=True)
    ]


def _children(node: Node | None) -> dict[int, NodeRef]:
    """Returns the children of an inner node by slot."""
    if not isinstance(node, Inner):
        return {}
    return dict(zip(node.slots, zip(node.children, node.placements, strict=True), strict=True))


def _spans(level: int) -> int:
    """Returns how many spans a node covers."""
    return int(FANOUT**level)
