"""The chunks that a store has already: the trees of its versions are the index."""

from collections.abc import Iterable

from blockmap.format.digest import ABSENT, Digest
from blockmap.format.node import Leaf, Placement
from blockmap.format.tree import Root
from blockmap.format.version import Run
from blockmap.publish.table import ChunkTable
from blockmap.store.repository import Repository


class KnownChunks:
    """Placements by chunk, from the trees of versions that are named."""

    def __init__(self) -> None:
        self._table = ChunkTable()
        self._seen: set[Digest] = set()
        self.roots: dict[Digest, Root] = {}
        """Trees that are stored whole."""
        self.runs: dict[Digest, Run] = {}
        """What an open of a tree should read first, by its root."""

    def add(self, repository: Repository, roots: Iterable[Root]) -> None:
        """Reads trees, each node once; Corrupt or NotFound where one cannot be read."""
        for root in roots:
            self._walk(repository, root)
            self.roots[root.digest] = root

    def _walk(self, repository: Repository, root: Root) -> None:
        if root.digest == ABSENT or root.digest in self.roots:
            return
        seen: set[Digest] = set()  # joins the others once all of the tree was read
        waiting: list[tuple[Digest, Placement | None]] = [(root.digest, root.placement)]
        while waiting:
            name, place = waiting.pop()
            if name in self._seen or name in seen:
                continue
            node = repository.node(name, place)
            seen.add(name)
            if isinstance(node, Leaf):
                for chunk, at, blocks in zip(node.chunks, node.placements, node.blocks.tolist(), strict=True):
                    if at is not None and self._table.get(chunk) is None:
                        self._table.place(self._table.add(chunk, blocks), at)
            else:
                waiting.extend(zip(node.children, node.placements, strict=True))
        self._seen |= seen

    def __len__(self) -> int:
        return len(self._table)

    def placement(self, name: Digest) -> Placement | None:
        return self._table.placement(name)
