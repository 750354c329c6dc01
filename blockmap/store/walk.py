"""Reads nodes and chunks of a tree from the store, many at once, in few ranges."""

from collections.abc import Collection
from dataclasses import dataclass

from blockmap.errors import Corrupt
from blockmap.format import keys
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.node import FANOUT, Inner, Node, Placement
from blockmap.format.tree import Root
from blockmap.store.concurrent import each
from blockmap.store.plan import MAX_REQUEST_BYTES, Request, Wanted, node_at, requests
from blockmap.store.repository import Repository, open_node


@dataclass(frozen=True, slots=True)
class StoredNode:
    """A node as it is stored where the tree says."""

    name: Digest
    frame: bytes
    node: Node
    span: int
    """The first below it."""


def nodes(repository: Repository, root: Root, spans: Collection[int] | None = None) -> list[StoredNode]:
    """The nodes above the leaves of `spans` (None: of all), and these leaves, parents first; Corrupt, StoreUnavailable."""
    found: list[StoredNode] = []
    row = [] if root.digest == ABSENT else [(root.digest, root.placement, 0)]
    for level in range(root.level, -1, -1):
        wanted = [(node_at(name, _placed(name, place)), span) for name, place, span in row]
        frames = fetch(repository, list({item.key: item for item, _ in wanted}.values()))
        row = []
        for item, span in wanted:
            node, frame = open_node(item.name, item.place, frames[item.key])
            if node.level != level:
                raise Corrupt(f"node {item.name.hex()} has level {node.level} where {level} is expected")
            found.append(StoredNode(item.name, frame, node, span))
            if isinstance(node, Inner):
                row += _children(node, span, spans)
    return found


def fetch(repository: Repository, items: Collection[Wanted]) -> dict[bytes, bytes | memoryview]:
    """What is stored at the places of `items`, by their keys, not verified yet."""

    def get(request: Request) -> list[tuple[bytes, bytes | memoryview]]:
        start = request[0].place.offset
        data = memoryview(repository.store.get_range(keys.pack(request[0].place.pack), start, request[-1].end))
        return [(item.key, data[item.place.offset - start : item.end - start]) for item in request]

    return dict(pair for pairs in each(get, requests(items, MAX_REQUEST_BYTES)) for pair in pairs)


def _placed(name: Digest, place: Placement | None) -> Placement:
    if place is None:
        raise Corrupt(f"nothing says where node {name.hex()} is stored")
    return place


def _children(node: Inner, span: int, spans: Collection[int] | None) -> list[tuple[Digest, Placement | None, int]]:
    width = FANOUT ** (node.level - 1)
    below = [
        (name, place, span + slot * width)
        for slot, name, place in zip(node.slots, node.children, node.placements, strict=True)
    ]
    if spans is None:
        return below
    return [child for child in below if any(child[2] <= wanted < child[2] + width for wanted in spans)]
