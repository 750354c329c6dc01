"""Cuts blocks into chunks, and puts the new chunks into packs.

    caller: write, cut -> queue -> chunker thread: xxh3, cuts, SHA-256, deduplication
                                     -> pool: zstd, a batch at a time, results taken in order
                                     -> pool: packs into the store

Everything between two stages is bounded, so memory does not grow with the volume but for 60 bytes per chunk and its
name. The first error of any stage ends all of them and is raised by the next call.
"""

import os
import queue
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from types import TracebackType

import numpy as np

from blockmap.format import BLOCK
from blockmap.format.chunker import Parameters, hashes, split, zero_blocks
from blockmap.format.digest import Digest, block_digests, chunk_digest
from blockmap.format.pack import TARGET_BYTES, Pack, PackedFrame, PackKind, seal
from blockmap.format.placement import Placement
from blockmap.publish.chunk_table import ChunkTable, ExtentTable
from blockmap.publish.stages import Stages
from blockmap.store.packs import Sealer

_SEGMENT_BYTES = 1 << 20
_QUEUED_SEGMENTS = 8
_ZEROS_BYTES = 1 << 16
"""Smaller pieces are not worth a look of their own."""
LOOKUP_CHUNKS = 1000
LOOKUP_BYTES = 32 << 20
"""Bytes of chunks that are looked up at once: enough neighbours for their hooks to vote, and bounded memory."""
_BATCH_BYTES = 1 << 20
_PACKS_IN_FLIGHT = 2


@dataclass(slots=True)
class Counts:
    """Counts what was written, for the summary of an import."""

    blocks: int = 0
    """Blocks that are not zero."""
    chunks: int = 0
    """Distinct chunks."""
    new_chunks: int = 0
    new_bytes: int = 0
    """Bytes of new chunks before compression."""
    stored_bytes: int = 0
    """Bytes of new chunks as stored."""
    packs: int = 0

    def forget_new(self) -> None:
        """Counts no chunk as new any more, since the packs with the new ones were deleted again."""
        self.new_chunks = self.new_bytes = self.stored_bytes = self.packs = 0


@dataclass(frozen=True, slots=True)
class _Segment:
    block: int
    data: bytearray
    """Nobody changes it any more."""
    cut: bool


class ChunkWriter:
    """Takes the blocks of one volume (a BlockSink), and stores those chunks that `known` does not find.

    `known` is asked about some 1,000 chunks at a time, which are neighbours, by one thread; it gives placements in order.
    Use as a context manager: leaving it ends all threads. After `finish`, `extents` and `table` are complete.
    """

    def __init__(
        self,
        put: Callable[[Pack], None],
        known: Callable[[Sequence[Digest]], Sequence[Placement | None]],
        parameters: Parameters,
        stages: Stages,
    ) -> None:
        self.table = ChunkTable()
        self.extents = ExtentTable()
        self.counts = Counts()
        self._put, self._known, self._parameters, self._stages = put, known, parameters, stages
        self._pending = bytearray()  # what the caller wrote since the last segment
        self._pending_block = 0
        self._pending_cut = True
        self._outgoing: list[_Segment] = []
        """What goes into the queue together: a queue of many small ones costs more than they do."""
        self._outgoing_bytes = 0
        self._queue: queue.Queue[list[_Segment] | None] = queue.Queue(_QUEUED_SEGMENTS)
        self._error: BaseException | None = None
        self._placed = threading.Event()
        """Set when every chunk has its place, or never will."""
        self._is_settled = False
        self._stop = threading.Event()
        workers = os.cpu_count() or 2
        self._compressing: deque[tuple[list[int], Future[list[PackedFrame]]]] = deque()
        # So that the next lookup's chunks can be hashed while those of the last one are compressed.
        self._compressing_limit = workers + 2 + LOOKUP_BYTES // _BATCH_BYTES
        self._compressors = ThreadPoolExecutor(workers, "compress")
        self._storing: deque[Future[None]] = deque()
        self._storers = ThreadPoolExecutor(_PACKS_IN_FLIGHT, "store")
        self._sealers = threading.local()
        self._undecided: list[tuple[int, Digest, bytes]] = []
        self._undecided_bytes = 0
        self._batch: list[tuple[int, Digest, bytes]] = []
        self._batch_bytes = 0
        self._frames: list[PackedFrame] = []
        self._frame_ids: list[int] = []
        self._frame_bytes = 0
        self._thread = threading.Thread(target=self._chunk, name="chunker", daemon=True)
        self._thread.start()

    def __enter__(self) -> "ChunkWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._send(None)
            self._thread.join()
        self._compressors.shutdown(wait=True, cancel_futures=True)
        self._storers.shutdown(wait=True, cancel_futures=True)

    def write(self, block: int, data: bytes | bytearray | memoryview) -> None:
        """Takes whole blocks; see `BlockSink`. Zeros are in no chunk, and cut: pieces of zeros only need no further look."""
        if len(data) >= _ZEROS_BYTES and not np.frombuffer(data, dtype=np.uint64).any():
            return  # the next write begins a new run
        if block != self._pending_block + len(self._pending) // BLOCK:
            self.cut()
        if not self._pending:
            self._pending_block = block
        self._pending += data
        if len(self._pending) >= _SEGMENT_BYTES:
            self._flush()

    def add_known(self, start: int, name: Digest, place: Placement) -> None:
        """Takes a chunk of the volume that the store has at `place`; only before the first `write`, which begins the thread's
        work on the tables."""
        blocks = place.raw // BLOCK
        number = self.table.get(name)
        if number is None:
            number = self.table.add(name, blocks)
            self.table.place(number, place)
            self.counts.chunks += 1
        self.extents.add(start, number)
        self.counts.blocks += blocks

    def cut(self) -> None:
        self._flush()
        self._pending_cut = True

    def settle(self) -> None:
        """Waits until every chunk has its place, so that trees can be made; the last packs may still be on their way."""
        self._flush()
        if self._outgoing:
            self._send(self._outgoing)
        self._send(None)
        self._is_settled = True
        self._placed.wait()
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Waits until every chunk is stored; raises what went wrong in any stage."""
        if not self._is_settled:
            self.settle()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _flush(self) -> None:
        if self._pending:
            length = len(self._pending) // BLOCK
            self._outgoing.append(_Segment(self._pending_block, self._pending, self._pending_cut))
            self._outgoing_bytes += len(self._pending)
            if self._outgoing_bytes >= _SEGMENT_BYTES:
                self._send(self._outgoing)
                self._outgoing, self._outgoing_bytes = [], 0
            self._pending_block += length
            self._pending = bytearray()
            self._pending_cut = False

    def _send(self, segments: list[_Segment] | None) -> None:
        while self._thread.is_alive():
            try:
                self._queue.put(segments, timeout=0.1)
                break
            except queue.Full:
                continue
        if self._error is not None and segments is not None:
            raise self._error

    def _chunk(self) -> None:
        """Runs the chunker thread."""
        try:
            self._chunk_all()
        except BaseException as error:
            self._error = error
        finally:
            self._placed.set()

    def _chunk_all(self) -> None:
        block, tail = 0, bytearray()
        of = np.zeros(0, dtype=np.uint64)
        stages = self._stages
        for segment in chain.from_iterable(iter(self._queue.get, None)):
            if self._stop.is_set():
                return
            with stages.time("xxh3"):
                more = hashes(segment.data)
            if segment.cut or segment.block != block + len(tail) // BLOCK:
                if tail:
                    self._emit(block, tail, of, final=True)
                block, tail, of = segment.block, segment.data, more
            else:
                tail, of = tail + segment.data, np.concatenate((of, more))
            if len(of) >= self._parameters.max:  # of less, most is seen again when there is more
                done = self._emit(block, tail, of, final=False)
                block, tail, of = block + done, tail[done * BLOCK :], of[done:]
        if tail:
            self._emit(block, tail, of, final=True)
        self._decide()
        if self._batch:
            self._compress()
        while self._compressing:
            self._collect()
        if self._frames:
            self._store()
        self._placed.set()
        while self._storing:
            self._storing.popleft().result()

    def _emit(self, block: int, data: bytearray, of: "np.ndarray[tuple[int], np.dtype[np.uint64]]", final: bool) -> int:
        """Takes the complete chunks off a run that begins at `block`; returns how many blocks they have."""
        stages, table, counts = self._stages, self.table, self.counts
        view = memoryview(data)
        with stages.time("cut"):
            found = split(of, zero_blocks(data, of), block, final, self._parameters)
        with stages.time("sha256"):
            names = []
            for start, end in found.chunks:
                names.append(chunk_digest(block_digests(view[start * BLOCK : end * BLOCK])))
        new: list[tuple[int, Digest, int, int]] = []
        with stages.time("deduplicate"):
            for (start, end), name in zip(found.chunks, names, strict=True):
                counts.blocks += end - start
                number = table.get(name)
                if number is None:
                    number = table.add(name, end - start)
                    counts.chunks += 1
                    new.append((number, name, start, end))
                self.extents.add(block + start, number)
        for number, name, start, end in new:
            # A copy, since a view would keep all of `data` for the sake of one chunk.
            self._undecided.append((number, name, bytes(view[start * BLOCK : end * BLOCK])))
            self._undecided_bytes += (end - start) * BLOCK
            if len(self._undecided) >= LOOKUP_CHUNKS or self._undecided_bytes >= LOOKUP_BYTES:
                self._decide()
        return found.done

    def _decide(self) -> None:
        """Gives each waiting chunk its known placement, or has it compressed."""
        waiting, self._undecided, self._undecided_bytes = self._undecided, [], 0
        with self._stages.time("deduplicate"):
            placements = self._known([name for _, name, _ in waiting])
        for chunk, placement in zip(waiting, placements, strict=True):
            if placement is not None:
                self.table.place(chunk[0], placement)
                continue
            self._batch.append(chunk)
            self._batch_bytes += len(chunk[2])
            if self._batch_bytes >= _BATCH_BYTES:
                self._compress()

    def _compress(self) -> None:
        batch, self._batch = self._batch, []
        self.counts.new_chunks += len(batch)
        self.counts.new_bytes += self._batch_bytes
        self._batch_bytes = 0
        numbers = [number for number, _, _ in batch]
        chunks = [(name, data) for _, name, data in batch]
        self._compressing.append((numbers, self._compressors.submit(self._compress_batch, chunks)))
        while len(self._compressing) > self._compressing_limit:
            self._collect()

    def _compress_batch(self, chunks: list[tuple[Digest, bytes]]) -> list[PackedFrame]:
        sealer: Sealer | None = getattr(self._sealers, "own", None)
        if sealer is None:
            sealer = self._sealers.own = Sealer()
        with self._stages.time("zstd"):
            return sealer.frames(chunks)

    def _collect(self) -> None:
        numbers, batch = self._compressing.popleft()
        for number, frame in zip(numbers, batch.result(), strict=True):
            if self._frame_bytes + len(frame.data) > TARGET_BYTES:
                self._store()
            self._frames.append(frame)
            self._frame_ids.append(number)
            self._frame_bytes += len(frame.data)

    def _store(self) -> None:
        pack = seal(PackKind.CHUNKS, self._frames, secrets.token_bytes(16))
        for number, placement in zip(self._frame_ids, pack.placements, strict=True):
            self.table.place(number, placement)
        self.counts.packs += 1
        self.counts.stored_bytes += sum(map(len, pack.parts))
        self._frames, self._frame_ids, self._frame_bytes = [], [], 0
        while len(self._storing) >= _PACKS_IN_FLIGHT:
            self._storing.popleft().result()
        self._storing.append(self._storers.submit(self._put_pack, pack))

    def _put_pack(self, pack: Pack) -> None:
        with self._stages.time("store"):
            self._put(pack)
