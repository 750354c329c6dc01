"""Hands nodes that the cache has to the publisher of a commit, and takes those that it stored into the cache.

So a commit waits for no node, and neither do the reads and the commits that come after it.
"""

from collections.abc import Sequence

from blockmap.commit.task import HANDED_BYTES, Frames
from blockmap.errors import BlockmapError, FormatError, NotFound
from blockmap.fetch.fetcher import Fetcher
from blockmap.format import node
from blockmap.format.node import Node
from blockmap.format.tree import Root
from blockmap.publish.dirty import BlockRuns, nodes_to_rewrite
from blockmap.store.packs import NodeRef
from blockmap.store.plan import node_at
from blockmap.store.walk import Spot, visit


class NodeExchange:
    """Gives and takes frames of nodes by their keys; safe to share between threads."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._cache = fetcher.cache

    def collect(self, root: Root, runs: BlockRuns) -> Frames:
        """Returns those of the nodes that a rewrite of these blocks needs that the cache has; asks the store for nothing."""
        needed, found, size = nodes_to_rewrite(runs), dict[bytes, bytes](), 0
        bottom: list[NodeRef] = []

        def select(level: int, row: list[Spot]) -> list[Spot]:
            chosen = needed(level, row)
            if level == 0:  # these have nothing below them, so nobody looks into them here
                bottom.extend(spot.ref for spot in chosen)
                return []
            return chosen

        def take(ref: NodeRef) -> bytes | None:
            nonlocal size
            name, place = ref
            key = None if place is None or size >= HANDED_BYTES else node_at(name, place).key
            frame = None if key is None else self._cache.get(key)
            if key is not None and frame is not None:
                found[key] = frame
                size += len(frame)
            return frame

        def load(refs: Sequence[NodeRef]) -> list[Node | BlockmapError]:
            made: list[Node | BlockmapError] = []
            for ref in refs:
                frame, (name, place) = take(ref), ref
                try:
                    made.append(
                        NotFound(f"the cache has no node {name.hex()}")
                        if frame is None or place is None
                        else node.decode(frame, place.pack, name)
                    )
                except FormatError as error:
                    made.append(error)
            return made

        for _ in visit(root, load, select):
            pass
        for ref in bottom:
            take(ref)
        return found

    def take(self, nodes: Frames) -> None:
        """Puts nodes into the cache."""
        for key, frame in nodes.items():
            self._cache.put(key, frame)
