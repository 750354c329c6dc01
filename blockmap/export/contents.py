"""Reads the blocks of files from a version's trees: in the order of the archive, in large ranges, and ahead of who takes them."""

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from blockmap.errors import BlockmapError
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.extent import Extent
from blockmap.format.filemap import FileRun
from blockmap.format.node import Inner, Node
from blockmap.format.placement import Placement
from blockmap.format.tree import Root
from blockmap.store.concurrent import spawn
from blockmap.store.packs import NodeRef, raised
from blockmap.store.plan import chunk_at
from blockmap.store.repository import Repository
from blockmap.store.walk import above, leaves

HOLE = -1
"""The start of a run of blocks that are zeros, and nowhere in the volume."""
_BATCH_BLOCKS = 2048
"""8 MiB, which are read at once, in some 5 to 10 ranges."""
_AHEAD = 3
"""Batches that are under way or wait to be taken."""
_WINDOW_BLOCKS = 256
_WINDOWS_IN_MEMORY = 32
_CHUNK_BYTES = 16 << 20
"""Bytes of chunks that are in memory for one batch: small files in the order of their paths take few blocks of each."""


class _Piece(NamedTuple):
    """Blocks of a chunk, and where they belong in a batch."""

    at: int
    chunk: Digest
    place: Placement
    first: int
    length: int


@dataclass(frozen=True, slots=True)
class _Span:
    """The extents of a span in one of the trees."""

    extents: list[Extent]
    places: dict[Digest, Placement | None]


class ContentReader:
    """Reads blocks that are in one of several trees of the same size; what is in none is zeros."""

    def __init__(self, repository: Repository, roots: Sequence[Root]) -> None:
        self._packs = repository.packs
        self._roots = roots
        self._inner: dict[NodeRef, Inner] = {}
        """The upper nodes; replacing one by its like does no harm, so no lock guards them."""

    def read(self, runs: Iterable[FileRun]) -> Iterator[memoryview]:
        """Yields the blocks of `runs`, one behind the other, in pieces. Raises Corrupt, NotFound, StoreUnavailable."""
        batches = _batches(runs)
        ahead: deque[Future[memoryview]] = deque()
        while True:
            while len(ahead) < _AHEAD and (batch := next(batches, None)) is not None:
                ahead.append(spawn(lambda batch=batch: self._load(batch)))  # type: ignore[misc]
            if not ahead:
                return
            yield ahead.popleft().result()

    def windows(self) -> Callable[[int, int], bytes]:
        """Returns a function that reads (offset, length) in bytes of the volume, of which it reads a MiB at once; for one thread.

        The metadata of a file system lies close together: a store that is far away is asked some ten times for it.
        """
        held: OrderedDict[int, memoryview] = OrderedDict()

        def window(number: int) -> memoryview:
            if number not in held:
                held[number] = self._load([(number * _WINDOW_BLOCKS, _WINDOW_BLOCKS)])
                if len(held) > _WINDOWS_IN_MEMORY:
                    held.popitem(last=False)
            held.move_to_end(number)
            return held[number]

        def read(offset: int, length: int) -> bytes:
            parts = []
            while length:
                number, start = divmod(offset, _WINDOW_BLOCKS * BLOCK)
                part = window(number)[start : start + length]
                parts.append(part)
                offset, length = offset + len(part), length - len(part)
            return b"".join(parts)

        return read

    def _load(self, batch: list[FileRun]) -> memoryview:
        spans = self._spans(batch)
        out = memoryview(bytearray(sum(length for _, length in batch) * BLOCK))
        pieces: list[_Piece] = []
        at = 0
        for start, length in batch:
            if start != HOLE:
                pieces += _pieces(spans, start, length, at)
            at += length
        pieces.sort(key=lambda piece: (piece.place.pack, piece.place.offset))
        group: dict[Digest, Placement] = {}
        first = taken = 0
        for number, piece in enumerate([*pieces, None]):
            if piece is None or (piece.chunk not in group and taken + piece.place.raw > _CHUNK_BYTES):
                self._copy(out, pieces[first:number], group)
                group, first, taken = {}, number, 0
            if piece is not None and piece.chunk not in group:
                group[piece.chunk] = piece.place
                taken += piece.place.raw
        return out

    def _copy(self, out: memoryview, pieces: list[_Piece], places: dict[Digest, Placement]) -> None:
        found = self._packs.chunks([chunk_at(name, place) for name, place in places.items()])
        for piece in pieces:
            data = memoryview(raised(found[piece.chunk]))
            end = piece.first + piece.length
            out[piece.at * BLOCK : (piece.at + piece.length) * BLOCK] = data[piece.first * BLOCK : end * BLOCK]

    def _spans(self, batch: list[FileRun]) -> dict[int, list[_Span]]:
        """Returns what each tree has in the spans that a batch touches."""
        wanted = {
            span
            for start, length in batch
            if start != HOLE
            for span in range(start // SPAN, (start + length - 1) // SPAN + 1)
        }
        found: dict[int, list[_Span]] = {span: [] for span in wanted}
        for root in self._roots:
            for span, leaf in leaves(root, self._nodes, above(wanted)):
                places = dict(zip(leaf.chunks, leaf.placements, strict=True))
                found[span].append(_Span(leaf.extents(span * SPAN), places))
        return found

    def _nodes(self, refs: Sequence[NodeRef]) -> list[Node | BlockmapError]:
        missing = [ref for ref in refs if ref not in self._inner]
        found = dict(zip(missing, self._packs.nodes(missing), strict=True))
        self._inner.update({ref: node for ref, node in found.items() if isinstance(node, Inner)})
        return [found[ref] if ref in found else self._inner[ref] for ref in refs]


def _batches(runs: Iterable[FileRun]) -> Iterator[list[FileRun]]:
    """Yields runs in lists of a batch's blocks."""
    batch: list[FileRun] = []
    room = _BATCH_BLOCKS
    for start, length in runs:
        while length:
            count = min(length, room)
            batch.append((start, count))
            start, length, room = start if start == HOLE else start + count, length - count, room - count
            if not room:
                yield batch
                batch, room = [], _BATCH_BLOCKS
    if batch:
        yield batch


def _pieces(spans: dict[int, list[_Span]], start: int, length: int, at: int) -> Iterator[_Piece]:
    """Yields the pieces of chunks in a run, which begins at block `at` of the batch."""
    end = start + length
    for number in range(start // SPAN, (end - 1) // SPAN + 1):
        for span in spans[number]:
            first = max(bisect_right(span.extents, start, key=lambda extent: extent.start) - 1, 0)
            for extent in span.extents[first:]:
                if extent.start >= end:
                    break
                if extent.end > start and extent.chunk is not None:
                    part = extent.piece(start, end)
                    place = span.places[extent.chunk]
                    assert place is not None
                    yield _Piece(at + part.start - start, extent.chunk, place, part.first, part.length)
