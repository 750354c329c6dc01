"""The leaves around one that was read: brought in few ranges, so that readers seldom wait for one."""

from collections.abc import Callable, Sequence

from blockmap.format.digest import Digest
from blockmap.format.node import FANOUT, Inner, Node, Placement
from blockmap.format.tree import Root
from blockmap.store.plan import Wanted, node_at

_NODES = 64
_BYTES = 512 << 10
"""Of the leaves at most: those of an image of some 600 MB."""


def prefetch_leaves(
    root: Root,
    span: int,
    bring: Callable[[Sequence[Wanted]], None],
    load: Callable[[Digest, Placement | None], Node],
) -> list[int]:
    """The spans of the leaves that were brought, the nearest first; raises what `load` does."""
    nodes = [(root.digest, root.placement, 0)]
    for level in range(root.level, 0, -1):
        covered = FANOUT ** (level - 1)
        children = []
        for name, place, first in nodes:
            node = load(name, place)
            assert isinstance(node, Inner)
            for slot, child, where in zip(node.slots, node.children, node.placements, strict=True):
                children.append((child, where, first + slot * covered))
        children.sort(key=lambda child: max(child[2] - span, span - child[2] - covered + 1, 0))
        nodes, count = [], 0
        for child, where, first in children[:_NODES]:
            count += where.stored if where is not None else 0
            if count > _BYTES:
                break
            nodes.append((child, where, first))
        bring([node_at(name, place) for name, place, _ in nodes if place is not None])
    return [first for _, _, first in nodes]
