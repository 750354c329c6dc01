"""The trees of a volume whose blocks are all chunked: what it shows, and what upper layers hide."""

from bisect import bisect_left
from dataclasses import dataclass, replace

from blockmap.format.chunker import SPAN
from blockmap.format.extent import coalesce, within
from blockmap.format.node import Leaf, leaf
from blockmap.format.tree import Draft, Root, assemble
from blockmap.format.version import Run
from blockmap.publish.chunks import ChunkWriter
from blockmap.publish.known import KnownChunks
from blockmap.publish.nodes import store_nodes
from blockmap.store.repository import Publication


@dataclass(frozen=True, slots=True)
class Trees:
    root: Root
    extra: Root
    """Contents that upper layers hide, at the offsets where they were written."""
    run: Run | None
    """What an open should read first; None where nobody knows."""
    stored_bytes: int


def store_trees(
    chunks: ChunkWriter, size: int, hidden: list[tuple[int, int]], known: KnownChunks, publication: Publication
) -> Trees:
    """Stores the trees of what `chunks` took; blocks in the ascending, disjoint ranges `hidden` go to `extra`."""
    volume, extra = _drafts(chunks, size, hidden)
    if volume.root.digest in known.roots and extra.root.digest in known.roots:
        # A root says nothing about the zeros behind the last data, so a volume of another size may have it.
        own, below = (replace(known.roots[draft.root.digest], size=size) for draft in (volume, extra))
        return Trees(own, below, known.runs.get(own.digest), 0)
    stored = store_nodes([volume, extra], chunks.table.placement, publication.put_pack)
    return Trees(stored.roots[0], stored.roots[1], stored.run, stored.stored_bytes)


def _drafts(chunks: ChunkWriter, size: int, hidden: list[tuple[int, int]]) -> tuple[Draft, Draft]:
    starts = [start for start, _ in hidden]
    shown_leaves: list[tuple[int, Leaf]] = []
    hidden_leaves: list[tuple[int, Leaf]] = []
    for span, extents in chunks.extents.spans(chunks.table):
        base, end = span * SPAN, (span + 1) * SPAN
        first = max(bisect_left(starts, base) - 1, 0)
        here = [
            (max(start, base), min(stop, end))
            for start, stop in hidden[first : bisect_left(starts, end)]
            if stop > base
        ]
        shown, below = within(extents, here) if here else (list(coalesce(extents)), [])
        for part, leaves in ((shown, shown_leaves), (below, hidden_leaves)):
            made = leaf(part, base, {})
            if made is not None:
                leaves.append((span, made))
    return assemble(shown_leaves, size), assemble(hidden_leaves, size)
