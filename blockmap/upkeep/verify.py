"""Looks at a whole version in the store, past any cache: how much there is, whether all of it is right."""

from collections.abc import Iterator
from dataclasses import dataclass

from blockmap.errors import BlockmapError
from blockmap.format import BLOCK
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.node import Inner, Leaf, Placement
from blockmap.format.tree import Root, leaves
from blockmap.format.version import Version
from blockmap.store.repository import Repository


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tree holds."""

    data_bytes: int
    """Of the volume, holes left out."""
    chunks: int
    chunk_bytes: int
    """Of distinct chunks, before compression."""
    stored_bytes: int
    packs: int


def usage(repository: Repository, root: Root) -> Usage:
    """Adds up a tree; reads its nodes."""
    data = raw = stored = 0
    seen: set[Digest] = set()
    packs: set[Digest] = set()
    for _, leaf in leaves(root, repository.node):
        data += int(leaf.lengths.sum())
        for chunk, place in zip(leaf.chunks, leaf.placements, strict=True):
            if chunk not in seen and place is not None:
                seen.add(chunk)
                packs.add(place.pack)
                raw += place.raw
                stored += place.stored
    return Usage(data * BLOCK, len(seen), raw, stored, len(packs))


def check_version(repository: Repository, version: Version) -> Iterator[str]:
    """Reads every node and chunk of a version, and says what is wrong with it; goes on after damage."""
    seen: set[Digest] = set()
    for root in (version.root, version.extra):
        waiting: list[tuple[Digest, Placement | None]] = (
            [] if root.digest == ABSENT else [(root.digest, root.placement)]
        )
        while waiting:
            name, place = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            try:
                node = repository.node(name, place)
            except BlockmapError as error:
                yield str(error)
                continue
            if isinstance(node, Inner):
                waiting.extend(zip(node.children, node.placements, strict=True))
            else:
                yield from _check_leaf(repository, node, seen)


def _check_leaf(repository: Repository, leaf: Leaf, seen: set[Digest]) -> Iterator[str]:
    for chunk, place in zip(leaf.chunks, leaf.placements, strict=True):
        if chunk in seen:
            continue
        seen.add(chunk)
        try:
            assert place is not None
            repository.chunk(chunk, place)
        except BlockmapError as error:
            yield str(error)
