"""Reads a version: finds the bytes of a read in the cache's data file, or fetches them.

The hit path of a read is one lookup among the leaves in memory, one bisect, one preadv into the caller's buffer, and a
look at the slot's mark, which is set before an evicted slot is punched: a slot that is still alive after the read was
alive during it. Everything else (several extents, zeros, misses, leaves not in memory) is `_read_slowly`.
"""

import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from blockmap.errors import Corrupt, NotFound
from blockmap.fetch.fetcher import Around, Fetcher
from blockmap.fetch.readahead import ReadAhead
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.node import Leaf
from blockmap.format.tree import Root
from blockmap.origin.outage import Attempt
from blockmap.origin.outage_policy import DEFAULT, OutagePolicy
from blockmap.store.plan import Wanted
from blockmap.volume.leaves import NOWHERE, Hot, Leaves, chunks_of
from blockmap.volume.reads import LENGTH_BITS, Read, ReadRecorder, Slow, Source
from blockmap.volume.start import Start

_SPAN_BYTES = SPAN * BLOCK
_SPAN_SHIFT = 24
_EXTENTS_AT_ONCE = 1024
"""Data and hole extents that one block status answers at most; clients ask on."""

_ZEROS = bytes(1 << 20)


class HitPath(NamedTuple):
    """What it takes to read what is in the cache, as `ReadOnlyVolume.reader` does."""

    hot_of: Callable[[int], Hot | None]
    """Finds what is known of a span."""
    dead: bytearray
    used: bytearray
    fd: int


class ReadOnlyVolume:
    """A version that is open: a Volume."""

    writable = False

    def __init__(self, name: str, root: Root, fetcher: Fetcher, policy: OutagePolicy = DEFAULT) -> None:
        """`name` is the version's export name by digest."""
        self._name = name
        self._size = root.size * BLOCK
        self._fetcher = fetcher
        self._cache = fetcher.cache
        self._policy = policy
        self._leaves = Leaves(root, fetcher)
        self._streams = ReadAhead()
        self._lock = threading.Lock()  # guards _streams
        self._waiting: set[int] = set()
        """Threads in `_read_slowly`."""

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def reader(self, start: Start, recorder: ReadRecorder | None = None) -> Read:
        """Returns a function that raises Corrupt, NotFound, StoreUnavailable."""
        hot_of, dead, used, fd = self.hit_path()
        slowly = partial(self._read_slowly, start)
        preadv, bisect = os.preadv, bisect_right
        mask, bits, block = _SPAN_BYTES - 1, LENGTH_BITS, BLOCK

        def read(buf: memoryview, offset: int) -> Slow | None:
            count = len(buf)
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
            return slowly(buf, offset)

        if recorder is None:
            return read
        note, mark, waited = recorder.note, recorder.mark, recorder.waited

        def recorded(buf: memoryview, offset: int) -> Slow:
            mark()
            slow = slowly(buf, offset)
            waited(offset, len(buf), slow)
            return slow

        # Word for word `read`, but for the note and who reads slowly: a call of `read` from here costs each read 3 %.
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
            return recorded(buf, offset)

        return noted

    def hit_path(self) -> HitPath:
        """Returns what a volume above this one needs to read as fast as this one does."""
        return HitPath(self._leaves.hot.get, self._cache.dead, self._cache.used, self._cache.fd)

    def extents(self, offset: int, count: int, start: Start) -> list[tuple[int, int, bool]]:
        end = min(offset + count, self.size)
        found: list[tuple[int, int, bool]] = []

        def add(first: int, stop: int, hole: bool) -> None:
            first, stop = max(first, offset), min(stop, end)
            if first >= stop:
                return
            if found and found[-1][2] == hole:
                first, stop = found[-1][0], stop
                found.pop()
            found.append((first, stop - first, hole))

        at, attempt = offset, self._fetcher.outage.attempt(self._policy)
        while at < end and len(found) < _EXTENTS_AT_ONCE:
            span = at // _SPAN_BYTES
            absent = self._leaves.absent_spans(span, start, attempt)
            if absent:
                add(at, (span + absent) * _SPAN_BYTES, True)
                at = (span + absent) * _SPAN_BYTES
                continue
            starts, ends, _ = self._leaves.load(span, start, attempt)[1]
            base = span * _SPAN_BYTES
            last = 0
            for first, stop in zip(starts, ends, strict=True):
                add(base + last, base + first, True)
                add(base + first, base + stop, False)
                last = stop
            add(base + last, base + _SPAN_BYTES, True)
            at = base + _SPAN_BYTES
        return found

    def want(self, offset: int, count: int, start: Start) -> None:
        self._fetcher.want(lambda: self._find_chunks(offset, min(offset + count, self.size), start))

    def want_nodes(self, offset: int) -> None:
        if not self._fetcher.is_local:
            attempt = self._fetcher.outage.attempt
            self._fetcher.want(lambda: self._leaves.way_to(offset // _SPAN_BYTES, attempt(self._policy)))

    def _find_chunks(self, offset: int, end: int, start: Start) -> list[Wanted]:
        """Returns the chunks of the bytes [offset, end)."""
        found, attempt = [], self._fetcher.outage.attempt(self._policy)
        for span in range(offset // _SPAN_BYTES, (end - 1) // _SPAN_BYTES + 1):
            if self._leaves.absent_spans(span, start, attempt):
                continue
            leaf, (starts, ends, _) = self._leaves.load(span, start, attempt)
            base = span * _SPAN_BYTES
            wanted = [i for i in range(len(starts)) if base + starts[i] < end and base + ends[i] > offset]
            if leaf is not None and wanted:
                found += chunks_of(leaf, wanted[0], wanted[-1] + 1)
        return found

    def _read_slowly(self, start: Start, buf: memoryview, offset: int) -> Slow:
        began = time.perf_counter()
        thread = threading.get_ident()
        self._waiting.add(thread)
        source = Source.ZEROS
        done, length = 0, len(buf)
        attempt = self._fetcher.outage.attempt(self._policy)
        try:
            while done < length:
                span, at = divmod(offset + done, _SPAN_BYTES)
                here = min(length - done, _SPAN_BYTES - at)
                found = self._read_span(buf[done : done + here], span, at, start, attempt)
                if found is Source.CACHE:
                    self._leaves.was_not_hot(span, start, attempt)
                source = max(source, found)
                done += here
        finally:
            self._waiting.discard(thread)
        if source is Source.FETCHED:
            start.misses.note(began, time.perf_counter(), offset // BLOCK)
        may_begin = source is Source.FETCHED or not start.is_under_way()
        with self._lock:
            ahead = self._streams.note(offset, length, may_begin)
        if ahead is not None and ahead[0] < self.size and not start.skips_readahead():
            self.want(ahead[0], ahead[1] - ahead[0], start)
        return Slow(source, time.perf_counter() - began)

    def _around(self, start: Start) -> Around | None:
        """Returns the function that finds the chunks fetched along with a miss; None if there are to be none."""
        if start.skips_readahead():
            return None
        return self._leaves.nearest if start.is_under_way() else self._leaves.around

    def _read_held(self, piece: memoryview, name: Digest, start: int, mask: int) -> int:
        """Fills `piece` from byte `start` of a chunk if the cache has these blocks; returns the slot, else -1."""
        cache = self._cache
        slot = cache.lookup(name)
        if slot < 0 or mask & ~cache.mask(slot) or not cache.check(slot, name):
            return -1
        if os.preadv(cache.fd, (piece,), cache.data_position(slot) + start) != len(piece) or cache.dead[slot]:
            return -1
        cache.used[slot] = 1
        return slot

    def _read_span(self, buf: memoryview, span: int, at: int, start: Start, attempt: Attempt) -> Source:
        """Fills `buf` with the bytes at `at` within a span; returns where they came from."""
        source = Source.ZEROS
        leaf, (starts, ends, places) = self._leaves.load(span, start, attempt)
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
                last = bisect_left(starts, end)
                source = max(source, self._read_miss(piece, span, leaf, starts[i], places, i, at, last, start, attempt))
            done, at = done + length, at + length
        return source

    def _read_miss(
        self,
        piece: memoryview,
        span: int,
        leaf: Leaf,
        extent_start: int,
        places: list[tuple[int, int]],
        i: int,
        at: int,
        last: int,
        start: Start,
        attempt: Attempt,
    ) -> Source:
        """Fills `piece` from extent `i`, whose place in the cache is not known, or no longer; extents up to `last` are read
        next. Returns where the bytes came from."""
        name = leaf.chunks[int(leaf.index[i])]
        first = int(leaf.first[i])
        begin = first * BLOCK + at - extent_start  # in the chunk
        mask = _blocks(begin, begin + len(piece))
        source = Source.CACHE
        staging = self._fetcher.staging
        # In this order: what leaves the staging area is in the cache before.
        if staging.read(name, begin, mask, piece):
            return source
        slot = self._read_held(piece, name, begin, mask)
        if slot < 0 and start.await_blocks(name, mask, self._fetcher.outage.left_s(attempt) / 2):
            source = Source.BUNDLE
            if staging.read(name, begin, mask, piece):
                return source
            slot = self._read_held(piece, name, begin, mask)
        if slot >= 0:
            # Of a chunk that is there in part, the hit path knows an extent all of whose blocks are.
            extent = _blocks(first * BLOCK, (first + int(leaf.lengths[i])) * BLOCK)
            if not extent & ~self._cache.mask(slot):
                places[i] = (self._cache.data_position(slot) + first * BLOCK - extent_start, slot)
            return source
        places[i] = NOWHERE
        source = Source.CACHE if self._fetcher.is_prefetched(name) else Source.FETCHED
        wanted = chunks_of(leaf, i, last)
        certain = self._leaves.is_reloaded(span, leaf)
        try:
            data = self._fetcher.get(wanted, self._around(start), attempt, certain)
        except (Corrupt, NotFound):
            fresh = self._leaves.reload(span, attempt, leaf)
            if fresh is None:
                raise
            wanted = chunks_of(fresh, i, last)
            data = self._fetcher.get(wanted, self._around(start), attempt)
        if len(data) < begin + len(piece):
            raise Corrupt(f"chunk {name.hex()} in pack {wanted[0].place.pack.hex()} is shorter than its extent")
        piece[:] = memoryview(data)[begin : begin + len(piece)]
        return source


def _blocks(start: int, end: int) -> int:
    """Returns the mask of the blocks of a chunk that have its bytes [start, end)."""
    first = start // BLOCK
    return ((1 << (-(-end // BLOCK) - first)) - 1) << first


def _fill_zeros(buf: memoryview) -> None:
    for at in range(0, len(buf), len(_ZEROS)):
        piece = buf[at : at + len(_ZEROS)]
        piece[:] = _ZEROS[: len(piece)]
