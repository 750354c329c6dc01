"""A read-only volume: which bytes of the cache's data file a request is.

The hit path of `read` is one lookup among the leaves in memory, one bisect, one preadv into the caller's buffer, and a
look at the slot's mark, which is set before an evicted slot is punched: a slot that is still alive after the read was
alive during it. Everything else (several extents, zeros, misses, leaves not in memory) is `_read_slowly`.
"""

import logging
import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable

from blockmap.errors import Corrupt
from blockmap.fetch.fetcher import Fetcher
from blockmap.fetch.neighbours import Neighbours
from blockmap.fetch.patience import DEFAULT, Patience
from blockmap.fetch.plan import Wanted, chunk_at, node_at
from blockmap.fetch.readahead import ReadAhead
from blockmap.format import BLOCK, tree
from blockmap.format.chunker import SPAN
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.node import FANOUT, Inner, Leaf, Node, Placement
from blockmap.format.tree import Root
from blockmap.volume.nearby import bring_around
from blockmap.volume.reads import Slow, Source

_log = logging.getLogger(__name__)

_SPAN_BYTES = SPAN * BLOCK
_SPAN_SHIFT = 24
_LEAVES_IN_MEMORY = 4096
"""64 GiB of address space, some 100 MB; a volume rarely has so many leaves."""
_EXTENTS_AT_ONCE = 1024
"""Data and hole extents that one block status answers at most; clients ask on."""

_ZEROS = bytes(1 << 20)

_NOWHERE = (0, -1)
_FAIL = Patience(0.0)
"""Of what is read for later."""

_Hot = tuple[list[int], list[int], list[tuple[int, int]]]
"""Of a leaf, per extent: start and end (bytes within the span), and where it is in the cache: (base, slot), where base
plus a byte of the span is its position in the data file, and slot is -1 where it is nowhere. One value, so that no reader
sees the base of one slot with the mark of another."""


class View:
    """A volume that is open; safe to share between threads."""

    def __init__(
        self, name: str, root: Root, fetcher: Fetcher, close: Callable[[], None], patience: Patience = DEFAULT
    ) -> None:
        self.name = name
        """By digest: `repo@sha256:HEX`."""
        self.close = close
        """To be called once for each time that the volume was opened."""
        self.size = root.size * BLOCK
        """Bytes."""
        self._root = root
        self._fetcher = fetcher
        self._cache = fetcher.cache
        self._patience = patience
        # Guards what follows against change by two threads; never held across I/O.
        self._lock = threading.Lock()
        self._neighbours = Neighbours()
        self._streams = ReadAhead()
        self._looking = False
        self._inner: dict[Digest, Inner] = {}
        self._leaves: dict[int, tuple[Leaf | None, _Hot]] = {}
        self._hot: dict[int, _Hot] = {}
        self._waiting: set[int] = set()
        """Threads in `_read_slowly`."""
        self.read = self._bind_read()

    def _bind_read(self) -> Callable[[memoryview, int], Slow | None]:
        hot_of, slowly = self._hot.get, self._read_slowly
        dead, used, fd = self._cache.dead, self._cache.used, self._cache.fd
        preadv, bisect = os.preadv, bisect_right
        mask = _SPAN_BYTES - 1

        def read(buf: memoryview, offset: int) -> Slow | None:
            """Fills `buf` with the bytes at `offset`; None from the hit path. Raises Corrupt, NotFound, StoreUnavailable."""
            hot = hot_of(offset >> _SPAN_SHIFT)
            if hot is not None:
                starts, ends, places = hot
                at = offset & mask
                i = bisect(starts, at) - 1
                if i >= 0 and at + len(buf) <= ends[i]:
                    base, slot = places[i]
                    if slot >= 0 and preadv(fd, (buf,), base + at) == len(buf) and not dead[slot]:
                        used[slot] = 1
                        return None
            return slowly(buf, offset)

        return read

    def extents(self, offset: int, count: int) -> list[tuple[int, int, bool]]:
        """(offset, length, hole) of the bytes from `offset` on, clamped to `count`; may end early, but never empty."""
        end = min(offset + count, self.size)
        found: list[tuple[int, int, bool]] = []

        def add(start: int, stop: int, hole: bool) -> None:
            start, stop = max(start, offset), min(stop, end)
            if start >= stop:
                return
            if found and found[-1][2] == hole:
                start, stop = found[-1][0], stop
                found.pop()
            found.append((start, stop - start, hole))

        at = offset
        while at < end and len(found) < _EXTENTS_AT_ONCE:
            span = at // _SPAN_BYTES
            absent = self._absent_spans(span)
            if absent:
                add(at, (span + absent) * _SPAN_BYTES, True)
                at = (span + absent) * _SPAN_BYTES
                continue
            starts, ends, _ = self._load(span)[1]
            base = span * _SPAN_BYTES
            last = 0
            for start, stop in zip(starts, ends, strict=True):
                add(base + last, base + start, True)
                add(base + start, base + stop, False)
                last = stop
            add(base + last, base + _SPAN_BYTES, True)
            at = base + _SPAN_BYTES
        return found

    def want(self, offset: int, count: int) -> None:
        """Brings a range into the cache in the background."""
        for span in range(offset // _SPAN_BYTES, (min(offset + count, self.size) - 1) // _SPAN_BYTES + 1):
            if self._absent_spans(span):
                continue
            leaf, (starts, ends, _) = self._load(span)
            base = span * _SPAN_BYTES
            wanted = [i for i in range(len(starts)) if base + starts[i] < offset + count and base + ends[i] > offset]
            if leaf is not None and wanted:
                self._fetcher.want(_chunks(leaf, wanted[0], wanted[-1] + 1))

    @property
    def waiting(self) -> int:
        """Reads that are under way off the hit path, which all that wait for the store are."""
        return len(self._waiting)

    def _read_slowly(self, buf: memoryview, offset: int) -> Slow:
        began = time.perf_counter()
        thread = threading.get_ident()
        self._waiting.add(thread)
        source = Source.ZEROS
        done, length = 0, len(buf)
        try:
            while done < length:
                span, at = divmod(offset + done, _SPAN_BYTES)
                here = min(length - done, _SPAN_BYTES - at)
                source = max(source, self._read_span(buf[done : done + here], span, at))
                done += here
        finally:
            self._waiting.discard(thread)
        with self._lock:
            ahead = self._streams.note(offset, length)
        if ahead is not None and ahead[0] < self.size:
            self._fetcher.later(lambda: self.want(ahead[0], ahead[1] - ahead[0]))
        return Slow(source, time.perf_counter() - began)

    def _read_span(self, buf: memoryview, span: int, at: int) -> Source:
        """Fills `buf` with the bytes at `at` within a span."""
        source = Source.ZEROS
        leaf, (starts, ends, places) = self._load(span)
        dead, used, fd = self._cache.dead, self._cache.used, self._cache.fd
        end = at + len(buf)
        i = max(bisect_right(starts, at) - 1, 0)
        done = 0
        count = len(starts)
        while at < end:
            while i < count and ends[i] <= at:
                i += 1
            if i == count or starts[i] >= end:
                _fill_zeros(buf[done:])
                return source
            if starts[i] > at:
                gap = starts[i] - at
                _fill_zeros(buf[done : done + gap])
                done, at = done + gap, starts[i]
            length = min(end, ends[i]) - at
            piece = buf[done : done + length]
            base, slot = places[i]
            if slot >= 0 and os.preadv(fd, (piece,), base + at) == length and not dead[slot]:
                used[slot] = 1
                source = max(source, Source.CACHE)
            else:
                assert leaf is not None
                source = max(source, self._read_miss(piece, leaf, starts[i], places, i, at, bisect_left(starts, end)))
            done, at = done + length, at + length
        return source

    def _read_miss(
        self,
        piece: memoryview,
        leaf: Leaf,
        extent_start: int,
        places: list[tuple[int, int]],
        i: int,
        at: int,
        last: int,
    ) -> Source:
        """Fills `piece` from extent `i`, whose place in the cache is not known, or no longer; extents up to `last` are
        read next."""
        cache = self._cache
        number = int(leaf.index[i])
        name = leaf.chunks[number]
        start = int(leaf.first[i]) * BLOCK + at - extent_start  # in the chunk
        slot = cache.lookup(name)
        whole = (1 << int(leaf.blocks[number])) - 1
        if slot >= 0 and cache.check(slot, name) and cache.mask(slot) == whole:
            position = cache.data_position(slot)
            if os.preadv(cache.fd, (piece,), position + start) == len(piece) and not cache.dead[slot]:
                cache.used[slot] = 1
                places[i] = (position + int(leaf.first[i]) * BLOCK - extent_start, slot)
                return Source.CACHE
        places[i] = _NOWHERE
        wanted = _chunks(leaf, i, last)
        data = self._fetcher.get(wanted, self._around, self._patience)
        if len(data) < start + len(piece):
            raise Corrupt(f"chunk {name.hex()} in pack {wanted[0].place.pack.hex()} is shorter than its extent")
        piece[:] = memoryview(data)[start : start + len(piece)]
        return Source.FETCHED

    def _around(self, own: Wanted, each_bytes: int) -> list[Wanted]:
        with self._lock:
            return self._neighbours.around(own, each_bytes)

    def _load(self, span: int) -> tuple[Leaf | None, _Hot]:
        """The leaf of a span, from memory, cache or store."""
        loaded = self._leaves.get(span)
        if loaded is None:
            loaded = self._find(span, self._patience)
            with self._lock:
                look, self._looking = not self._looking, True
            if look:
                self._fetcher.later(lambda: self._look_around(span))
        return loaded

    def _find(self, span: int, patience: Patience) -> tuple[Leaf | None, _Hot]:
        leaf = tree.find(self._root, span, lambda name, place: self._node(name, place, patience))
        loaded = (leaf, _heat(leaf))
        near = [] if leaf is None else _all_chunks(leaf)
        with self._lock:
            if span in self._leaves:
                return self._leaves[span]
            if len(self._leaves) >= _LEAVES_IN_MEMORY:
                oldest = next(iter(self._leaves))
                self._hot.pop(oldest, None)
                gone, _ = self._leaves.pop(oldest)
                self._neighbours.remove([] if gone is None else _all_chunks(gone))
            self._leaves[span] = loaded
            self._neighbours.add(near)
            self._hot[span] = loaded[1]
        return loaded

    def _look_around(self, span: int) -> None:
        """Brings the leaves around one that was read, in few ranges, so that the next read does not wait for its leaf,
        and the chunks around a missing one are known whatever span they are in."""
        with self._lock:
            self._looking = False

        def load(name: Digest, place: Placement | None) -> Node:
            return self._node(name, place, _FAIL)

        for near in bring_around(self._root, span, self._fetcher.bring, load):
            if near not in self._leaves:
                self._find(near, _FAIL)

    def _node(self, name: Digest, place: Placement | None, patience: Patience) -> Node:
        """Inner nodes stay in memory."""
        inner = self._inner.get(name)
        if inner is not None:
            return inner
        if place is None:
            raise Corrupt(f"nothing says where node {name.hex()} is stored")
        node = self._fetcher.node(node_at(name, place), patience)
        if isinstance(node, Inner):
            with self._lock:
                self._inner[name] = node
        return node

    def _absent_spans(self, span: int) -> int:
        """How many spans from `span` on are zeros for certain, known from inner nodes alone; 0 if the first is not."""
        name, place = self._root.digest, self._root.placement
        for level in range(self._root.level, 0, -1):
            if name == ABSENT:
                covered = int(FANOUT**level)
                return covered - span % covered
            node = self._node(name, place, self._patience)
            assert isinstance(node, Inner)
            child = node.child(span // FANOUT ** (level - 1) % FANOUT)
            if child is None:
                covered = int(FANOUT ** (level - 1))
                return covered - span % covered
            name, place = child
        return 1 if name == ABSENT else 0


def _heat(leaf: Leaf | None) -> _Hot:
    if leaf is None:
        return [], [], []
    starts = leaf.starts.astype(int) * BLOCK
    ends = starts + leaf.lengths.astype(int) * BLOCK
    return starts.tolist(), ends.tolist(), [_NOWHERE] * len(starts)


def _chunks(leaf: Leaf, first: int, end: int) -> list[Wanted]:
    """The chunks of the extents [first, end), each once, in volume order; Corrupt."""
    wanted = []
    for number in dict.fromkeys(leaf.index[first:end].tolist()):
        place = leaf.placements[number]
        if place is None:
            raise Corrupt(f"nothing says where chunk {leaf.chunks[number].hex()} is stored")
        wanted.append(chunk_at(leaf.chunks[number], place))
    return wanted


def _all_chunks(leaf: Leaf) -> list[Wanted]:
    return [
        chunk_at(name, place) for name, place in zip(leaf.chunks, leaf.placements, strict=True) if place is not None
    ]


def _fill_zeros(buf: memoryview) -> None:
    for at in range(0, len(buf), len(_ZEROS)):
        piece = buf[at : at + len(_ZEROS)]
        piece[:] = _ZEROS[: len(piece)]
