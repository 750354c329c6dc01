"""Finds chunks that a store has already: hooks say which leaves of its trees to read, and the leaves' placements are remembered.

A chunk that is not found is stored again, which costs space and nothing else; a placement that is found comes from a
verified leaf. Memory is bounded, whatever the store has: the leaves used last, and 16 bytes per hook.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from blockmap.errors import BlockmapError, Corrupt
from blockmap.format import hooks
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.hooks import Hooks
from blockmap.format.node import FANOUT, Inner, Leaf, Node
from blockmap.format.placement import Placement
from blockmap.format.tree import Root, coverage
from blockmap.publish.pack_health import PackHealth
from blockmap.publish.sparse import Champion, HookTable
from blockmap.store.pack_logs import Damage
from blockmap.store.packs import NodeRef, Packs, raised
from blockmap.store.repository import Repository
from blockmap.store.walk import Select, Spot, leaves, visit

MAX_CHUNKS = 100_000
"""Chunks whose placements are remembered, about 450 bytes each."""
_MAX_INNER = 256
_NEIGHBOURS = 8
"""Leaves read on either side of a champion: the volume probably goes on as that tree does, and one request less is waited for."""
_MOST_LEAVES = 96
"""Leaves read for one lookup, at most: 1.5 MB or so."""


@dataclass(frozen=True, slots=True)
class StoredTree:
    roots: Sequence[Root]
    """Roots of one digest, in the places where versions have it."""
    hooks: Hooks


class _NoLeafError(Corrupt):
    """A tree lacks a leaf that its hooks name."""


class RecentLeaves:
    """Placements by chunk, from the leaves that were used last; not thread-safe."""

    def __init__(self, max_chunks: int) -> None:
        self._max_chunks = max_chunks
        self.leaves: OrderedDict[Digest, Sequence[Digest]] = OrderedDict()
        """Chunks by leaf, the one used last at the end."""
        self._chunks = 0
        self._places: dict[Digest, tuple[Digest, Placement]] = {}
        """By chunk: the latest leaf that lists it, and its placement there."""

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, chunk: Digest) -> bool:
        return chunk in self._places

    def add(self, name: Digest, leaf: Leaf) -> None:
        if name in self.leaves:
            self._drop(name)
        self.leaves[name] = leaf.chunks
        self._chunks += len(leaf.chunks)
        for chunk, place in zip(leaf.chunks, leaf.placements, strict=True):
            if place is not None:
                self._places[chunk] = name, place
        while self._chunks > self._max_chunks and len(self.leaves) > 1:
            self._drop(next(iter(self.leaves)))

    def placement(self, chunk: Digest) -> Placement | None:
        found = self._places.get(chunk)
        if found is None:
            return None
        self.leaves.move_to_end(found[0])
        return found[1]

    def _drop(self, name: Digest) -> None:
        chunks = self.leaves.pop(name)
        self._chunks -= len(chunks)
        for chunk in chunks:
            if self._places.get(chunk, (None,))[0] == name:
                del self._places[chunk]


class DedupIndex:
    """Finds placements of chunks in the trees of versions that names stand for; for one thread at a time.

    A node that cannot be read is said once, and done without. What is found can be relied on, as `health` says.
    """

    def __init__(
        self,
        repository: Repository,
        trees: Sequence[StoredTree],
        warn: Callable[[str], None],
        damage: Damage | None = None,
        mend: Callable[[Digest], object] = lambda root: None,
        condemned: Collection[str] = (),
    ) -> None:
        """`mend` is called, once each, with the roots of trees whose hooks turn out not to be theirs; `condemned` is as
        `PackHealth` has it."""
        self.health = PackHealth(repository.store, damage or {}, condemned)
        self._packs = Packs(repository.store.get_range)
        self._trees = trees
        self._roots = {tree.roots[0].digest: tree.roots for tree in trees}
        self._table = HookTable([tree.hooks for tree in trees])
        self._warn = warn
        self._mend = mend
        self._wrong: set[int] = set()
        """Numbers of trees whose hooks are wrong."""
        self._recent = RecentLeaves(MAX_CHUNKS)
        self._inner: OrderedDict[NodeRef, Inner] = OrderedDict()
        self._unreadable: dict[NodeRef, BlockmapError] = {}
        self._read: dict[Digest, Placement] = {}
        self._said: set[str] = set()

    def __len__(self) -> int:
        """Returns how many chunks are remembered now."""
        return len(self._recent)

    def lookup(self, chunks: Sequence[Digest]) -> list[Placement | None]:
        """Returns where each of about 1,000 neighbouring chunks of a volume is stored; None for those not found."""
        while self._load(self._table.champions(chunks, [chunk not in self._recent for chunk in chunks])):
            pass  # what failed is not proposed again
        return [self._recent.placement(chunk) for chunk in chunks]

    def leaf(self, name: Digest) -> Placement | None:
        """Returns where a leaf is stored that was read; None for any other."""
        return self._read.get(name)

    def tree(self, name: Digest) -> Root | None:
        """Returns a tree that is stored whole, else None; reads all of its nodes that were not read yet."""
        for root in self._roots.get(name, ()):
            if self.whole(root):
                return replace(root, placement=self.health.find(name, root.placement))
        return None

    def whole(self, root: Root) -> bool:
        """Returns True if all nodes of a stored tree can be read; what chunks of it are lost is noted in `health`."""

        def unread(level: int, row: list[Spot]) -> list[Spot]:
            return row if level else [spot for spot in row if self._read.get(spot.ref[0]) != spot.ref[1]]

        return not any(isinstance(found, BlockmapError) for _, found in visit(root, self._nodes, unread))

    def leaves(self, root: Root, select: Select | None = None) -> Iterator[tuple[int, Leaf]]:
        """Yields the leaves of a stored tree, each with the number of its span, and its chunks where they can be relied on: one
        that is lost has no placement. Raises the error of a node that cannot be read."""
        return leaves(root, self._nodes, select)

    def _load(self, champions: Sequence[Champion]) -> bool:
        """Reads leaves and their neighbours; returns True if a champion failed, so that others may now be better."""
        wanted: dict[NodeRef, Champion | None] = {}
        failed = False
        for champion in champions:
            try:
                wanted[self._locate(champion)] = champion
            except BlockmapError as error:
                self._table.drop(champion)
                self._note(error)
                if isinstance(error, _NoLeafError):
                    self._note_wrong(champion.tree)
                failed = True
        for distance in range(1, _NEIGHBOURS + 1):
            for champion in champions:
                for span in (champion.span - distance, champion.span + distance):
                    with contextlib.suppress(BlockmapError):
                        wanted.setdefault(self._locate(Champion(champion.tree, span)))
        unread = [at for at in wanted if at[0] not in self._recent.leaves][:_MOST_LEAVES]
        for at, found in zip(unread, self._nodes(unread), strict=True):
            if isinstance(found, Leaf):
                self._recent.add(at[0], found)
                self._check_hooks(wanted[at], found)
            failed = failed or isinstance(found, BlockmapError)
        return failed

    def _check_hooks(self, champion: Champion | None, leaf: Leaf) -> None:
        """Has the hooks made again that led to a leaf which lacks one of them."""
        if champion is None:
            return
        tree = self._trees[champion.tree]
        listed = tree.hooks["hook"][tree.hooks["span"] == champion.span]
        if not set(listed.tolist()) <= set(hooks.prefixes(leaf.chunks).tolist()):
            self._note_wrong(champion.tree)

    def _note_wrong(self, tree: int) -> None:
        if tree not in self._wrong:
            self._wrong.add(tree)
            self._mend(self._trees[tree].roots[0].digest)

    def _locate(self, champion: Champion) -> NodeRef:
        """Returns where a leaf is stored, in any of the places of its tree; BlockmapError."""
        error: BlockmapError = _NoLeafError("the hooks of a tree name a leaf that the tree lacks")
        for root in self._trees[champion.tree].roots:
            try:
                at = self._descend(root, champion.span)
            except BlockmapError as why:
                error = why
                continue
            if at is not None and at not in self._unreadable:
                return at
            if at is not None:
                error = self._unreadable[at]
        raise error

    def _descend(self, root: Root, span: int) -> NodeRef | None:
        at: NodeRef = root.digest, root.placement
        if not 0 <= span < coverage(root.level) // SPAN:
            return None
        for level in range(root.level, 0, -1):
            child = self._inner_at(at).child(span // FANOUT ** (level - 1) % FANOUT)
            if child is None:
                return None
            at = child
        return at

    def _inner_at(self, at: NodeRef) -> Inner:
        if at not in self._inner:
            node = raised(self._nodes([at])[0])
            if not isinstance(node, Inner):
                raise Corrupt(f"node {at[0].hex()} is a leaf where an inner node is expected")
            self._inner[at] = node
            if len(self._inner) > _MAX_INNER:
                self._inner.popitem(last=False)
        return self._inner[at]

    def _nodes(self, refs: Sequence[NodeRef]) -> list[Node | BlockmapError]:
        """Returns nodes, or why they cannot be read, which is remembered and said; keeps no leaf: there may be thousands.

        A leaf has its chunks where they can be relied on; those that are lost have no placement.
        """
        found: dict[NodeRef, Node | BlockmapError] = {ref: self._inner[ref] for ref in refs if ref in self._inner}
        found |= {ref: self._unreadable[ref] for ref in refs if ref in self._unreadable}
        unread = [ref for ref in refs if ref not in found]
        places = self.health.find_all([name for name, _ in unread], [place for _, place in unread])
        for ref, node in zip(unread, self._stored(unread, places), strict=True):
            if isinstance(node, BlockmapError):
                self._unreadable[ref] = node
                self._note(node)
            found[ref] = node
        return [found[ref] for ref in refs]

    def _stored(self, refs: Sequence[NodeRef], places: Sequence[Placement | None]) -> list[Node | BlockmapError]:
        """Reads nodes where they are now; one that is damaged there is read from where else it was stored, or noted."""
        read = self._packs.nodes([(name, place) for (name, _), place in zip(refs, places, strict=True)])
        self.health.ask(pack for node in read if isinstance(node, Leaf) for pack in node.placements.ends())
        made: list[Node | BlockmapError] = []
        for ref, place, node in zip(refs, places, read, strict=True):
            name, said = ref
            if isinstance(node, Corrupt) and place is not None:
                node = self._packs.nodes([(name, place)])[0]  # it may have been damaged on its way
            if isinstance(node, Corrupt) and place is not None:
                self.health.note_damaged(name, place.pack)
                other = self.health.find(name, place)
                made.append(node if other is None else self._stored([ref], [other])[0])
            elif isinstance(node, Leaf) and place is not None:
                self._read[name] = place
                made.append(node.with_placements(self.health.find_all(node.chunks, node.placements)))
            elif place is None and said is not None:
                made.append(
                    Corrupt(f"node {name.hex()} is lost: pack {said.pack.hex()} is gone, short or damaged there")
                )
            else:
                made.append(node)
        return made

    def _note(self, error: BlockmapError) -> None:
        text = f"not deduplicating against what cannot be read: {error}"
        if text not in self._said:
            self._said.add(text)
            self._warn(text)
