"""Makes the trees of a volume whose new blocks are all chunked: one of what it shows, one of what upper layers hide."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from blockmap.format import hooks
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.extent import Extent, coalesce, within
from blockmap.format.node import Leaf, leaf
from blockmap.format.pack import Pack
from blockmap.format.placement import Placement
from blockmap.format.tree import Draft, Load, Root, assemble, rewrite
from blockmap.format.version import NodeRun, Version
from blockmap.publish.chunks import ChunkWriter
from blockmap.publish.dedup_index import DedupIndex
from blockmap.publish.nodes import store_nodes


@dataclass(frozen=True, slots=True)
class Trees:
    """The stored trees of a version."""

    root: Root
    extra: Root
    """Contents that upper layers hide, at the offsets where they were written."""
    run: NodeRun | None
    """What an open should read first; None where nobody knows."""
    stored_bytes: int
    hooks: list[tuple[Digest, bytes]]
    """The root and the hooks' object of each tree that holds anything."""
    known: bool
    """True where both trees were stored already."""
    nodes: Mapping[Digest, Placement]
    """The placements of the nodes that were drafted; of known trees, those of the roots."""


@dataclass(frozen=True, slots=True)
class TreeDrafts:
    """The trees of a version, some of whose nodes are not stored yet."""

    volume: Draft
    extra: Draft
    hooks: list[tuple[Digest, bytes]]
    """As `Trees` has them."""


def draft_whole(chunks: ChunkWriter, size: int, hidden: list[tuple[int, int]]) -> TreeDrafts:
    """Drafts the trees of all that `chunks` took; blocks in the ascending, disjoint ranges `hidden` go to `extra`."""
    parts = _leaves(chunks, hidden)
    volume, extra = (assemble(part, size) for part in parts)
    made = [
        (draft.root.digest, hooks.encode(draft.root.digest, hooks.sample((span, leaf.chunks) for span, leaf in part)))
        for draft, part in zip((volume, extra), parts, strict=True)
        if part
    ]
    return TreeDrafts(volume, extra, made)


def draft_rewrite(base: Version, edits: list[Extent], size: int, load: Load) -> TreeDrafts:
    """Drafts the trees of ascending, disjoint `edits` over a version; reads the nodes on the way to them alone.

    It makes no hooks, which need all leaves: the first import that deduplicates against the volume makes them.
    """
    return TreeDrafts(rewrite(base.root, edits, size, load, {}), rewrite(base.extra, [], size, load, {}), [])


def store_trees(
    drafts: TreeDrafts,
    place: Callable[[Digest], Placement | None],
    known: DedupIndex,
    put_pack: Callable[[Pack], None],
    keep: Callable[[Digest, bytes], object] = lambda name, frame: None,
) -> Trees:
    """Stores the new nodes of drafts whose trees are not both stored already; `place` has the placements of new chunks, and
    `keep` is given the frames of the new nodes."""
    own, below = _stored(drafts.volume, known), _stored(drafts.extra, known)
    if own is not None and below is not None:
        tops = {root.digest: root.placement for root in (own, below) if root.placement is not None}
        return Trees(own, below, None, 0, drafts.hooks, known=True, nodes=tops)
    stored = store_nodes([drafts.volume, drafts.extra], place, put_pack, known.leaf, keep=keep)
    roots, run, size = stored.roots, stored.run, stored.stored_bytes
    return Trees(roots[0], roots[1], run, size, drafts.hooks, known=False, nodes=stored.places)


def _stored(draft: Draft, known: DedupIndex) -> Root | None:
    if not draft.nodes:  # all zeros, or the base as it was
        return draft.root
    found = known.tree(draft.root.digest)
    # A root says nothing about the zeros behind the last data, so a volume of another size may have it.
    return None if found is None else replace(found, size=draft.root.size)


def _leaves(
    chunks: ChunkWriter, hidden: list[tuple[int, int]]
) -> tuple[list[tuple[int, Leaf]], list[tuple[int, Leaf]]]:
    """Returns the leaves of the volume and those of `extra`, each with its span."""
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
    return shown_leaves, hidden_leaves
