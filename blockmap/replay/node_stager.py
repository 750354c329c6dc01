"""The nodes of a tree, as a bundle brings them: in any order, while the cache knows them by their places, of which their
parents tell."""

from blockmap.cache.cache import Cache
from blockmap.errors import FormatError
from blockmap.format import node as nodes
from blockmap.format.digest import Digest
from blockmap.format.node import Inner, Node, Placement
from blockmap.format.tree import Root
from blockmap.store.plan import node_at


class NodeStager:
    """Nodes on their way to the cache. Not safe to share."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._places: dict[Digest, Placement] = {}
        """Where the tree says that its nodes are."""
        self._waiting: dict[Digest, bytes] = {}
        """Nodes that have come before their parents."""

    def begin(self, root: Root) -> None:
        if root.placement is not None:
            self._places[root.digest] = root.placement

    def has(self, name: Digest) -> bool:
        """Whether the cache has a node; learns from it where its children are."""
        place = self._places.get(name)
        frame = None if place is None else self._cache.get(node_at(name, place).key)
        if place is None or frame is None:
            return False
        try:
            self._learn(nodes.decode(frame, place.pack, name))
        except FormatError:
            return False
        return True

    def put(self, name: Digest, frame: bytes) -> int:
        """One has come; how many are damaged of those that are known by now."""
        self._waiting[name] = frame
        damaged = 0
        came = [name]
        for each in came:
            place = self._places.get(each)
            if place is None or each not in self._waiting:
                continue
            stored = self._waiting.pop(each)
            try:
                node = nodes.decode(stored, place.pack, each)
            except FormatError:
                damaged += 1
                continue
            self._cache.put(node_at(each, place).key, stored)
            self._learn(node)
            if isinstance(node, Inner):
                came += node.children
        return damaged

    def _learn(self, node: Node) -> None:
        if isinstance(node, Inner):
            for child, place in zip(node.children, node.placements, strict=True):
                if place is not None:
                    self._places[child] = place
