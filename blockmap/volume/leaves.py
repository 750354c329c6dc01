"""Keeps the leaves of one open volume in memory, with what the hit path needs of each, and finds the neighbours of a chunk."""

import logging
import threading
from collections.abc import Sequence

from blockmap.cache.cache import Cache
from blockmap.errors import Corrupt, NotFound
from blockmap.fetch.fetcher import Fetcher
from blockmap.fetch.neighbours import Neighbours
from blockmap.format import BLOCK, tree
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.node import FANOUT, Inner, Leaf, Node
from blockmap.format.placement import Placement
from blockmap.format.tree import Root
from blockmap.origin.outage import Attempt
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.store.packs import NodeRef
from blockmap.store.plan import Wanted, chunk_at, node_at
from blockmap.volume.leaf_prefetch import prefetch_leaves
from blockmap.volume.start import Start

_log = logging.getLogger(__name__)

_LEAVES_IN_MEMORY = 4096
"""Leaves that are held at most: 64 GiB of address space in some 100 MB; few volumes have more."""

NOWHERE = (0, -1)
_LEAST_NOT_HOT = 64
_NEAREST_SHARE = 8
"""While a bundle is replayed, misses are scattered, so that only 1/8 of the usual neighbours are fetched: a start of a
machine-learning stack moved 63 MB instead of 73, and missed no more."""
_NEAREST_BYTES = 128 << 10
_FAIL = OutagePolicy(0.0)
"""The policy of reads ahead, which do not wait for a store that is away."""

Hot = tuple[list[int], list[int], list[tuple[int, int]]]
"""What the hit path needs of a leaf, per extent: start and end (bytes within the span), and where it is in the cache: (base,
slot), where base plus a byte of the span is its position in the data file, and slot is -1 where it is nowhere. A place is
one value, so that no reader sees the base of one slot with the mark of another."""


class Leaves:
    """Loads nodes as they are needed; safe to share between threads."""

    def __init__(self, root: Root, fetcher: Fetcher) -> None:
        self._root = root
        self._fetcher = fetcher
        # Guards what follows against change by two threads; never held across I/O. Readers look without it, but for the
        # neighbours.
        self._lock = threading.Lock()
        self._neighbours = Neighbours()
        self._looking = False
        self._inner: dict[Digest, Inner] = {}
        self._by_span: dict[int, tuple[Leaf | None, Hot]] = {}
        self._reloaded: set[int] = set()
        """The spans in memory whose nodes are the store's own for certain."""
        self.hot: dict[int, Hot] = {}
        """By span, for the leaves in memory; where the cache holds a part of an extent, that part is an extent of its own."""
        self._not_hot: dict[int, int] = {}
        """By span: how many reads the cache answered off the hit path since `hot` was last refined. It is counted without the
        lock: one may be lost."""

    def load(self, span: int, start: Start, attempt: Attempt) -> tuple[Leaf | None, Hot]:
        """Returns the leaf of a span, from memory, cache or store."""
        loaded = self._by_span.get(span)
        if loaded is None:
            loaded = self._find(span, start, attempt)
            with self._lock:
                look = not self._looking and not start.skips_readahead()
                self._looking = self._looking or look
            if look:
                self._fetcher.later(lambda: self._look_around(span, start))
        return loaded

    def is_reloaded(self, span: int, leaf: Leaf) -> bool:
        """Returns True if `leaf` is what `reload` returned for a span: its places are the store's own."""
        return span in self._reloaded and self._by_span.get(span, (None,))[0] is leaf

    def reload(self, span: int, attempt: Attempt, stale: Leaf | None = None) -> Leaf | None:
        """Returns the leaf of a span, loaded from the store with all nodes above it; None if `stale` was already, or there is
        none.

        For when something is not where a node says: no digest covers what nodes say of places, and those that came with a
        bundle may say what they like.
        """
        with self._lock:
            if span in self._reloaded:
                leaf = self._by_span[span][0]
                return None if leaf is stale else leaf
        above: dict[Digest, Inner] = {}

        def load(name: Digest, place: Placement | None) -> Node:
            node = self._fetcher.stored_node(_placed(name, place), attempt)
            if isinstance(node, Inner):
                above[name] = node
            return node

        leaf = tree.find(self._root, span, load)
        _log.warning(
            "the nodes above span %d of tree %s are read anew, as a place in them was wrong",
            span,
            self._root.digest.hex(),
        )
        with self._lock:
            self._inner.update(above)
        self._keep(span, leaf, reloaded=True)
        return leaf

    def absent_spans(self, span: int, start: Start, attempt: Attempt) -> int:
        """Returns how many spans from `span` on are zeros for certain, as inner nodes say; 0 if the first is not."""
        try:
            return self._descend(span, start, attempt)[0]
        except (Corrupt, NotFound):
            if self.reload(span, attempt) is None:
                raise
            return self._descend(span, start, attempt)[0]

    def _descend(self, span: int, start: Start, attempt: Attempt) -> tuple[int, NodeRef]:
        """Reads the nodes above a span; returns what `absent_spans` says, and the leaf where that is 0."""
        name, place = self._root.digest, self._root.placement
        for level in range(self._root.level, 0, -1):
            if name == ABSENT:
                covered = int(FANOUT**level)
                return covered - span % covered, (name, None)
            node = self._node(name, place, start, attempt)
            assert isinstance(node, Inner)
            child = node.child(span // FANOUT ** (level - 1) % FANOUT)
            if child is None:
                covered = int(FANOUT ** (level - 1))
                return covered - span % covered, (ABSENT, None)
            name, place = child
        return (1 if name == ABSENT else 0), (name, place)

    def way_to(self, span: int, attempt: Attempt) -> list[Wanted]:
        """Returns the leaf of a span, which is not read; reads the nodes above it."""
        _, (name, place) = self._descend(span, Start("", self._root), attempt)
        return [] if place is None else [node_at(name, place)]

    def was_not_hot(self, span: int, start: Start, attempt: Attempt) -> None:
        """Notes that the cache answered a read off the hit path: after some of these the hit path learns what the cache has
        now of all extents, so that what is held in part is read as fast as the rest."""
        leaf, (starts, _, _) = self.load(span, start, attempt)
        count = self._not_hot[span] = self._not_hot.get(span, 0) + 1
        if leaf is None or count < max(_LEAST_NOT_HOT, len(starts) // 2):
            return
        self._not_hot[span] = 0
        found = held(leaf, self._fetcher.cache)
        with self._lock:
            if span in self._by_span:
                self.hot[span] = found

    def around(self, own: Wanted, each_bytes: int) -> list[Wanted]:
        """Returns the chunks around one in its pack, within `each_bytes` on each side."""
        with self._lock:
            return self._neighbours.around(own, each_bytes)

    def nearest(self, own: Wanted, each_bytes: int) -> list[Wanted]:
        """Returns the nearest of the chunks around one, for a start most of whose reads a bundle brings."""
        return self.around(own, max(each_bytes // _NEAREST_SHARE, min(each_bytes, _NEAREST_BYTES)))

    def _find(self, span: int, start: Start, attempt: Attempt) -> tuple[Leaf | None, Hot]:
        try:
            leaf = tree.find(self._root, span, lambda name, place: self._node(name, place, start, attempt))
        except (Corrupt, NotFound):
            leaf = self.reload(span, attempt)
            if leaf is None:
                raise
        return self._keep(span, leaf)

    def _keep(self, span: int, leaf: Leaf | None, reloaded: bool = False) -> tuple[Leaf | None, Hot]:
        """Puts the leaf of a span into memory; returns what is there now, which another thread may have put there first. One
        that is reloaded takes the place of another."""
        loaded = (leaf, _heat(leaf))
        near = [] if leaf is None else all_chunks(leaf)
        with self._lock:
            if reloaded:
                self._forget(span)
                self._reloaded.add(span)
            elif span in self._by_span:
                return self._by_span[span]
            if len(self._by_span) >= _LEAVES_IN_MEMORY:
                self._forget(next(iter(self._by_span)))
            self._by_span[span] = loaded
            self._neighbours.add(near)
            self.hot[span] = loaded[1]
        return loaded

    def _forget(self, span: int) -> None:
        """Takes the leaf of a span out of memory, if it is there. The lock is held."""
        self.hot.pop(span, None)
        self._not_hot.pop(span, None)
        self._reloaded.discard(span)
        gone, _ = self._by_span.pop(span, (None, None))
        self._neighbours.remove([] if gone is None else all_chunks(gone))

    def _look_around(self, span: int, start: Start) -> None:
        """Fetches the leaves around one that was read, in few ranges, so that the next read does not wait for its leaf, and
        the chunks around a missing one are known whatever span they are in."""
        with self._lock:
            self._looking = False

        def load(refs: Sequence[NodeRef]) -> list[Node]:
            bring_nodes(self._fetcher, [ref for ref in refs if ref[0] not in self._inner])
            return [self._node(name, place, start, self._fetcher.outage.attempt(_FAIL)) for name, place in refs]

        for near, leaf in prefetch_leaves(self._root, span, load):
            if near not in self._by_span:
                self._keep(near, leaf)

    def _node(self, name: Digest, place: Placement | None, start: Start, attempt: Attempt) -> Node:
        """Returns a node, from memory, cache or store; inner nodes stay in memory."""
        inner = self._inner.get(name)
        if inner is not None:
            return inner
        if not self._fetcher.has_node(name, place):
            start.await_nodes(self._fetcher.outage.left_s(attempt) / 2)
        node = load_node(self._fetcher, name, place, attempt)
        if isinstance(node, Inner):
            with self._lock:
                self._inner[name] = node
        return node


def load_node(fetcher: Fetcher, name: Digest, place: Placement | None, attempt: Attempt) -> Node:
    """Returns a node from the cache or the store; Corrupt, NotFound, StoreUnavailable."""
    return fetcher.node(_placed(name, place), attempt)


def _placed(name: Digest, place: Placement | None) -> Wanted:
    if place is None:
        raise Corrupt(f"nothing says where node {name.hex()} is stored")
    return node_at(name, place)


def bring_nodes(fetcher: Fetcher, refs: Sequence[NodeRef]) -> None:
    """Fetches nodes that nobody waits for yet, in few ranges; never raises."""
    fetcher.fetch_now([node_at(name, place) for name, place in refs if place is not None])


def chunks_of(leaf: Leaf, first: int, end: int) -> list[Wanted]:
    """Returns the chunks of the extents [first, end), each once, in volume order; Corrupt."""
    wanted = []
    for number in dict.fromkeys(leaf.index[first:end].tolist()):
        place = leaf.placements[number]
        if place is None:
            raise Corrupt(f"nothing says where chunk {leaf.chunks[number].hex()} is stored")
        wanted.append(chunk_at(leaf.chunks[number], place))
    return wanted


def _heat(leaf: Leaf | None) -> Hot:
    if leaf is None:
        return [], [], []
    starts = leaf.starts.astype(int) * BLOCK
    ends = starts + leaf.lengths.astype(int) * BLOCK
    return starts.tolist(), ends.tolist(), [NOWHERE] * len(starts)


def held(leaf: Leaf, cache: Cache) -> Hot:
    """Returns the runs of blocks of the extents of a leaf that the cache has, and has checked."""
    starts, ends, places = [], [], []
    rows = zip(leaf.starts.tolist(), leaf.lengths.tolist(), leaf.first.tolist(), leaf.index.tolist(), strict=True)
    for start, length, first, index in rows:
        slot = cache.lookup(leaf.chunks[index])
        if slot < 0 or not cache.checked[slot] or cache.dead[slot]:
            continue
        mask = cache.mask(slot) >> first & ((1 << length) - 1)
        base = cache.data_position(slot) + (first - start) * BLOCK
        at = start
        while mask:
            skip = (mask & -mask).bit_length() - 1
            mask >>= skip
            run = (~mask & (mask + 1)).bit_length() - 1
            mask >>= run
            starts.append((at + skip) * BLOCK)
            at += skip + run
            ends.append(at * BLOCK)
            places.append((base, slot))
    return starts, ends, places


def all_chunks(leaf: Leaf) -> list[Wanted]:
    """Returns the chunks of a leaf, in volume order."""
    return [
        chunk_at(name, place) for name, place in zip(leaf.chunks, leaf.placements, strict=True) if place is not None
    ]
