"""A read-only volume: which bytes of the cache's data file a request is.

The hit path of `read` is one lookup among the leaves in memory, one bisect, one preadv into the caller's buffer, and a
look at the slot's mark, which is set before an evicted slot is punched: a slot that is still alive after the read was
alive during it. Everything else (several extents, zeros, misses, leaves not in memory) is `_read_slowly`.
"""

import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable

from blockmap.errors import Corrupt
from blockmap.fetch.fetcher import Around, Fetcher
from blockmap.fetch.readahead import ReadAhead
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.node import Leaf
from blockmap.format.tree import Root
from blockmap.origin.outage_policy import DEFAULT, OutagePolicy
from blockmap.replay.replay import Replay
from blockmap.volume.leaves import NOWHERE, Leaves, chunks_of
from blockmap.volume.reads import LENGTH_BITS, Note, Read, Slow, Source

_SPAN_BYTES = SPAN * BLOCK
_SPAN_SHIFT = 24
_EXTENTS_AT_ONCE = 1024
"""Data and hole extents that one block status answers at most; clients ask on."""

_ZEROS = bytes(1 << 20)


class ReadOnlyVolume:
    """A volume that is open; safe to share between threads."""

    def __init__(
        self, name: str, root: Root, fetcher: Fetcher, close: Callable[[], None], patience: OutagePolicy = DEFAULT
    ) -> None:
        self.name = name
        """By digest: `repo@sha256:HEX`."""
        self.close = close
        """To be called once for each time that the volume was opened."""
        self.root = root
        self.size = root.size * BLOCK
        """Bytes."""
        self.replay: Replay | None = None
        """What is brought for its start."""
        self.profile = 0
        """Number of the profile that whoever warms the kernel was told of: what the kernel has then is read of no view."""
        self._fetcher = fetcher
        self._cache = fetcher.cache
        self._patience = patience
        self._leaves = Leaves(root, fetcher, patience, self._skips_readahead, self._await_nodes)
        self._streams = ReadAhead()
        self._lock = threading.Lock()  # guards _streams
        self._waiting: set[int] = set()
        """Threads in `_read_slowly`."""
        self.read = self._bind_read()

    def noting(self, note: Note, mark: Callable[[], None]) -> Read:
        """As `read`, each read noted before it is done, and the time of one that leaves the hit path."""
        return self._bind_read(note, mark)

    def _bind_read(self, note: Note | None = None, mark: Callable[[], None] | None = None) -> Read:
        hot_of, slowly = self._leaves.hot.get, self._read_slowly
        dead, used, fd = self._cache.dead, self._cache.used, self._cache.fd
        preadv, bisect = os.preadv, bisect_right
        mask, bits, block = _SPAN_BYTES - 1, LENGTH_BITS, BLOCK

        def read(buf: memoryview, offset: int) -> Slow | None:
            """Fills `buf` with the bytes at `offset`; None from the hit path. Raises Corrupt, NotFound, StoreUnavailable."""
            hot = hot_of(offset >> _SPAN_SHIFT)
            if hot is not None:
                starts, ends, places = hot
                at = offset & mask
                count = len(buf)
                i = bisect(starts, at) - 1
                if i >= 0 and at + count <= ends[i]:
                    base, slot = places[i]
                    if slot >= 0 and preadv(fd, (buf,), base + at) == count and not dead[slot]:
                        used[slot] = 1
                        return None
            return slowly(buf, offset)

        if note is None or mark is None:
            return read

        # Word for word: a call of `read` from here costs each read 3 %, as measured by `bench record`.
        def noted(buf: memoryview, offset: int) -> Slow | None:
            count = len(buf)
            note(offset if count == block else ~(offset << bits | count))
            hot = hot_of(offset >> _SPAN_SHIFT)
            if hot is not None:
                starts, ends, places = hot
                at = offset & mask
                i = bisect(starts, at) - 1
                if i >= 0 and at + count <= ends[i]:
                    base, slot = places[i]
                    if slot >= 0 and preadv(fd, (buf,), base + at) == count and not dead[slot]:
                        used[slot] = 1
                        return None
            mark()
            return slowly(buf, offset)

        return noted

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
            absent = self._leaves.absent_spans(span)
            if absent:
                add(at, (span + absent) * _SPAN_BYTES, True)
                at = (span + absent) * _SPAN_BYTES
                continue
            starts, ends, _ = self._leaves.load(span)[1]
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
            if self._leaves.absent_spans(span):
                continue
            leaf, (starts, ends, _) = self._leaves.load(span)
            base = span * _SPAN_BYTES
            wanted = [i for i in range(len(starts)) if base + starts[i] < offset + count and base + ends[i] > offset]
            if leaf is not None and wanted:
                self._fetcher.want(chunks_of(leaf, wanted[0], wanted[-1] + 1))

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
                found = self._read_span(buf[done : done + here], span, at)
                if found is Source.CACHE:
                    self._leaves.was_not_hot(span)
                source = max(source, found)
                done += here
        finally:
            self._waiting.discard(thread)
        may_begin = source is Source.FETCHED or not self._is_starting()
        with self._lock:
            ahead = self._streams.note(offset, length, may_begin)
        if ahead is not None and ahead[0] < self.size and not self._skips_readahead():
            self._fetcher.later(lambda: self.want(ahead[0], ahead[1] - ahead[0]))
        return Slow(source, time.perf_counter() - began)

    def _is_starting(self) -> bool:
        """Whether most of what is read comes with a bundle, and says nothing about what is read next."""
        return self.replay is not None and self.replay.is_start()

    def _skips_readahead(self) -> bool:
        """Whether what was not asked for is not worth bringing."""
        return self.replay is not None and self.replay.skips_readahead()

    def _around(self) -> Around | None:
        """What a miss takes along."""
        if self._skips_readahead():
            return None
        return self._leaves.nearest if self._is_starting() else self._leaves.around

    def _await_nodes(self) -> None:
        if self.replay is not None:
            self.replay.wait_nodes()

    def _read_held(self, piece: memoryview, name: Digest, start: int, mask: int) -> int:
        """Fills `piece` from byte `start` of a chunk, where the cache has its blocks: the slot, else -1."""
        cache = self._cache
        slot = cache.lookup(name)
        if slot < 0 or mask & ~cache.mask(slot) or not cache.check(slot, name):
            return -1
        if os.preadv(cache.fd, (piece,), cache.data_position(slot) + start) != len(piece) or cache.dead[slot]:
            return -1
        cache.used[slot] = 1
        return slot

    def _read_span(self, buf: memoryview, span: int, at: int) -> Source:
        """Fills `buf` with the bytes at `at` within a span."""
        source = Source.ZEROS
        leaf, (starts, ends, places) = self._leaves.load(span)
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
        name = leaf.chunks[int(leaf.index[i])]
        first = int(leaf.first[i])
        start = first * BLOCK + at - extent_start  # in the chunk
        mask = _blocks(start, start + len(piece))
        source = Source.CACHE
        staging, replay = self._fetcher.staging, self.replay
        # In this order: what leaves the staging is in the cache before.
        if staging.read(name, start, mask, piece):
            return source
        slot = self._read_held(piece, name, start, mask)
        if slot < 0 and replay is not None and replay.wait(name, mask):
            source = Source.BUNDLE
            if staging.read(name, start, mask, piece):
                return source
            slot = self._read_held(piece, name, start, mask)
        if slot >= 0:
            # Of a chunk that is there in part, the hit path knows an extent all of whose blocks are.
            extent = _blocks(first * BLOCK, (first + int(leaf.lengths[i])) * BLOCK)
            if not extent & ~self._cache.mask(slot):
                places[i] = (self._cache.data_position(slot) + first * BLOCK - extent_start, slot)
            return source
        places[i] = NOWHERE
        wanted = chunks_of(leaf, i, last)
        data = self._fetcher.get(wanted, self._around(), self._patience)
        if len(data) < start + len(piece):
            raise Corrupt(f"chunk {name.hex()} in pack {wanted[0].place.pack.hex()} is shorter than its extent")
        piece[:] = memoryview(data)[start : start + len(piece)]
        return Source.FETCHED


def _blocks(start: int, end: int) -> int:
    """The mask of the blocks of a chunk that have its bytes [start, end)."""
    first = start // BLOCK
    return ((1 << (-(-end // BLOCK) - first)) - 1) << first


def _fill_zeros(buf: memoryview) -> None:
    for at in range(0, len(buf), len(_ZEROS)):
        piece = buf[at : at + len(_ZEROS)]
        piece[:] = _ZEROS[: len(piece)]
