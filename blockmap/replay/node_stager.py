"""Brings a tree's nodes into the cache in whatever order they come.

The cache names a node by its digest and its place in the store. A bundle has digests alone: a node's place is written in
its parent, so that a node which comes before its parent has to wait for it.
"""

from blockmap.cache.cache import Cache
from blockmap.errors import FormatError
from blockmap.format import node as nodes
from blockmap.format.digest import Digest
from blockmap.format.node import Inner, Node
from blockmap.format.placement import Placement
from blockmap.format.tree import Root
from blockmap.store.plan import node_at


class NodeStager:
    """Holds nodes until their places are known. Not safe to share: one thread at a time uses it."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._places: dict[Digest, Placement] = {}
        """Where nodes lie in the store, as the root and the nodes seen so far tell."""
        self._waiting: dict[Digest, bytes] = {}
        """Nodes, as stored, that came before their parents."""

    def begin(self, root: Root) -> None:
        """Learns the place of the root, before any other call."""
        if root.placement is not None:
            self._places[root.digest] = root.placement

    def has(self, name: Digest) -> bool:
        """Returns True if the cache has a node, and learns from it where its children are."""
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
        """Takes a node that has come; returns how many turn out to be damaged, of it and those that waited for it."""
        self._waiting[name] = frame
        damaged = 0
        ready = [name]
        for each in ready:
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
                ready += node.children
        return damaged

    def _learn(self, node: Node) -> None:
        if isinstance(node, Inner):
            for child, place in zip(node.children, node.placements, strict=True):
                if place is not None:
                    self._places[child] = place
