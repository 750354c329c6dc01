"""A bundle on its way into the cache: what a start is known to read, in the order in which it reads it.

All of it is asked for at once, in ranges that grow, as far as the link holds them. Where the cache is empty they are cut
before the head is there, so that the first data comes with it; else the head says which frames hold something new. A
reader whose blocks come soon waits for them; one whose blocks are further down fetches its chunk itself. What does not
come, or comes damaged, is fetched when it is read.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from blockmap.cache.cache import Cache
from blockmap.cache.staging import StagingArea
from blockmap.format import BLOCK
from blockmap.format.bundle import BundleHead
from blockmap.format.hint import BundleRef
from blockmap.format.tree import Root
from blockmap.origin.ranges import Ranges
from blockmap.replay import head_cache
from blockmap.replay.frames import BundleFrame, FrameDecoder
from blockmap.replay.node_stager import NodeStager
from blockmap.replay.range_buffer import RangeBuffer, split_ranges
from blockmap.replay.stream import Stream

_log = logging.getLogger(__name__)

_FIRST_BYTES = 16 << 10
"""Behind the head, in the same range."""
_MOST_BYTES = 2 << 20
"""The 16 MiB that are asked for at once over a new link are no more ranges than connections are kept warm: what is one too many
comes a round trip later, as the last 2 MB of a bundle of 12 MB did in ranges of 1 MiB."""
_GAP_BYTES = 4 << 10
_EMPTY_SLOTS = 64
"""A cache with no more counts as empty: the nodes of another image are so many."""
_PATROL_S = 0.5
_PATIENCE_S = 2.0
"""How long a reader waits for what was asked for: a stream that stalls must not hold it up."""
_SOON_S = 0.2
_READY_S = 10.0
_START_S = 60.0
_AGAIN_S = 10.0
"""How soon one that failed is asked for again."""
_STRAYS = 8
"""A start that misses no more than this gets what it misses and nothing around it: nearly all that it reads comes anyway. Not
by a bundle that was carried from another version: what is new in this one is missed together."""


class Replay:
    """One bundle; safe to share between threads."""

    def __init__(
        self,
        about: BundleRef,
        root: Callable[[], Root],
        ranges: Ranges,
        cache: Cache,
        landing: StagingArea,
        room: threading.Semaphore,
        verifying: threading.Lock,
    ) -> None:
        """`root` is that of the volume, and may be waited for; nodes go to the cache, chunks to the `landing`; `room` is for
        requests, each in a thread that nobody has to wait for; `verifying` is held by whoever verifies."""
        self.key = about.key
        self.number = int(about.key.rpartition("/")[2])
        """Of the profile."""
        self.head: BundleHead | None = None
        self.failed = ""
        """Why it ended before its time."""
        self.waited_reads = self.bypassed_reads = self.missed_reads = 0
        """Reads that waited for what was to come soon, of what was far down, and of what the bundle does not have. Counted
        without a lock: one may be lost."""
        self._about, self._root = about, root
        self._ranges, self._cache, self._landing = ranges, cache, landing
        self._began = time.monotonic()
        self._head_known, self._ended = threading.Event(), threading.Event()
        self._stream = Stream(about.key, ranges, room, self._take, self._fail)
        self._lock = threading.Lock()  # guards what follows; never held across I/O
        self._cut = RangeBuffer([])
        self._stalled_at = -1
        """How much had come when a reader waited in vain."""
        self._waiting: dict[int, BundleFrame] = {}
        """Frames of which not all has come, by number."""
        self._by_range: list[list[BundleFrame]] = []
        """The same, by the number of each range that brings them."""
        self._with_nodes: list[BundleFrame] = []
        self._coming: dict[bytes, list[tuple[BundleFrame, int]]] = {}
        """By chunk: frames, and the blocks that each brings."""
        self._stems = NodeStager(cache)
        self._opener = FrameDecoder(about.key, cache, landing, self._stems, verifying, self._end, self._fail)
        threading.Thread(target=self._run, name="replay", daemon=True).start()

    # --- for readers

    def wait(self, key: bytes, mask: int) -> bool:
        """Whether these blocks of a chunk were to come soon, and have come."""
        frames, missing = [], mask
        for frame, brought in self._coming.get(key, ()):
            if mask & brought:
                frames.append(frame)
                missing &= ~brought
        if missing:
            self.missed_reads += 1
            return False
        for frame in frames:
            self._opener.promote(frame)
        stalled = self._stream.came == self._stalled_at or self._ranges.line.away
        late = stalled or self._stream.is_far(frames[-1].last)
        if late and not all(frame.landed.is_set() for frame in frames):
            self.bypassed_reads += 1
            return False
        self.waited_reads += 1
        if all(frame.landed.wait(_PATIENCE_S) for frame in frames):
            return True
        self._stalled_at = self._stream.came
        return False

    def is_start(self) -> bool:
        """Whether what is read comes from here, but for what nobody knew of."""
        return not self.failed and time.monotonic() - self._began < _START_S

    def skips_readahead(self) -> bool:
        """Whether a miss is to bring nothing besides."""
        enough = 1 if self.head is not None and self.head.ported else _STRAYS
        return self.missed_reads < enough and self.is_start()

    def wait_nodes(self) -> bool:
        """Waits for the nodes of the tree that the bundle has, up to a time after its beginning; whether it works so far."""
        end = self._began + _READY_S
        return (
            self._has_come(self._head_known, end)
            and all(self._has_come(frame.landed, end) for frame in self._with_nodes)
            and not self.failed
        )

    def _has_come(self, event: threading.Event, end: float) -> bool:
        """Waits, but not for a store that is away."""
        while not event.wait(min(_PATROL_S, max(end - time.monotonic(), 0))):
            if self._ranges.line.away or time.monotonic() >= end:
                return False
        return True

    def wait_head(self, seconds: float) -> BundleHead | None:
        """What the bundle holds, where that is known in time."""
        self._head_known.wait(seconds)
        return self.head

    def soon_blocks(self, head: BundleHead) -> int:
        """How many blocks come within a moment; all of them where nothing is under way any more."""
        stored, raw = sum(frame.stored for frame in head.frames), sum(frame.raw for frame in head.frames)
        if self._ended.is_set() or not stored:
            return raw // BLOCK
        return int(self._ranges.bytes_per_s * _SOON_S * raw / stored) // BLOCK

    def is_recent(self) -> bool:
        """Whether it is under way, or ended a moment ago: a start opens an export more than once."""
        return not self._ended.is_set() or time.monotonic() - self._began < (_AGAIN_S if self.failed else _START_S)

    @property
    def bytes(self) -> int:
        """That came."""
        return self._stream.bytes

    @property
    def chunks(self) -> int:
        """That were new."""
        return self._opener.chunks

    @property
    def damaged(self) -> int:
        """Chunks and nodes."""
        return self._opener.damaged

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def wait_end(self, seconds: float) -> bool:
        """Whether it is over in time."""
        return self._ended.wait(seconds)

    def stop(self) -> None:
        """Ends it before its time."""
        self._end("stopped")

    def close(self) -> None:
        """Ends it; cache and landing are not touched any more."""
        self.stop()
        self._opener.join()

    def status(self) -> dict[str, object]:
        """Counters, for people and machines."""
        return {
            "bundle": self.key,
            "ended": self._ended.is_set(),
            "failed": self.failed,
            "bytes": self.bytes,
            "chunks": self.chunks,
            "damaged": self.damaged,
            "waited_reads": self.waited_reads,
            "bypassed_reads": self.bypassed_reads,
            "missed_reads": self.missed_reads,
        }

    # --- the head, and what to ask for

    def _run(self) -> None:
        try:
            head = head_cache.load(self._cache, self._about)
            if head is None and self._cache.status()["slots"] + self._landing.count <= _EMPTY_SLOTS:
                first = self._about.table + _FIRST_BYTES
                self._plan(split_ranges([(0, self._about.length)], first, _FIRST_BYTES, _MOST_BYTES))
                self._stream.ask()
                return
            have = None
            if head is None:
                have = self._stream.read(0, min(self._about.table + _FIRST_BYTES, self._about.length))
                head = head_cache.store(self._cache, self._about, have)
            end = len(have) if have is not None else 0
            rest = split_ranges(self._new_ranges(head, end), _FIRST_BYTES, 2 * _FIRST_BYTES, _MOST_BYTES)
            self._plan([(0, end)] * (end > 0) + list(rest))
            self._enter(head)
            self._stream.ask(have)
        except Exception as error:
            self._fail(error)

    def _plan(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._cut = RangeBuffer(ranges)
        self._stream.plan(self._cut.ranges)

    def _new_ranges(self, head: BundleHead, have: int) -> list[tuple[int, int]]:
        """The frames that hold something new, without the first `have` bytes, as few ranges."""
        self._know_root()
        new = {piece.frame for piece in head.pieces if not self._landing.has(piece.chunk, piece.mask)}
        new |= {stem.frame for stem in head.nodes if not self._stems.has(stem.node)}
        found: list[tuple[int, int]] = []
        for number in sorted(new):
            start, end = max(head.frames[number].offset, have), head.frames[number].end
            if start >= end:
                continue
            if found and start - found[-1][1] <= _GAP_BYTES:
                found[-1] = found[-1][0], end
            else:
                found.append((start, end))
        return found

    def _enter(self, head: BundleHead) -> None:
        """Notes what comes in which frame; from then on readers may wait for it."""
        self._know_root()
        frames: dict[int, BundleFrame] = {}
        listed = head.listed_frames
        for number, place in enumerate(head.frames):
            spans = self._cut.spans(place.offset, place.end)
            if spans is not None:
                frames[number] = BundleFrame(number, *spans, number < listed)
        for stem in head.nodes:
            if stem.frame in frames and not self._stems.has(stem.node):
                frames[stem.frame].stems.append(stem)
                frames[stem.frame].wanted = True  # whoever misses something looks for it there
        for piece in head.pieces:
            if piece.frame in frames and not self._landing.has(piece.chunk, piece.mask):
                frames[piece.frame].pieces.append(piece)
        first = min((piece.frame for piece in head.pieces), default=len(head.frames))
        self._opener.begin(head)
        with self._lock:
            self.head = head
            self._waiting = {number: frame for number, frame in frames.items() if frame.stems or frame.pieces}
            self._with_nodes = [frame for frame in self._waiting.values() if frame.stems and frame.number <= first]
            self._by_range = [[] for _ in self._cut.ranges]
            for frame in self._waiting.values():
                self._cut.use(frame.first, frame.last)
                for number in range(frame.first, frame.last + 1):
                    self._by_range[number].append(frame)
                for piece in frame.pieces:
                    self._coming.setdefault(piece.chunk, []).append((frame, piece.mask))
            self._cut.settle()
            self._take_whole(head, list(self._waiting.values()))
        self._head_known.set()
        self._stream.know()

    def _know_root(self) -> None:
        self._stems.begin(self._root())

    # --- frames

    def _take(self, number: int, data: memoryview) -> None:
        """A range has come."""
        if self.head is None and number == 0:
            self._enter(head_cache.store(self._cache, self._about, data))
        with self._lock:
            if self._ended.is_set():
                return
            self._cut.put(number, data)
            if self.head is not None:
                self._take_whole(self.head, self._by_range[number])

    def _take_whole(self, head: BundleHead, frames: Iterable[BundleFrame]) -> None:
        """To be called with the lock: has those opened of which all has come."""
        for frame in frames:
            if self._cut.is_here(frame.first, frame.last):
                place = head.frames[frame.number]
                self._opener.put(frame, self._cut.take(frame.first, frame.last, place.offset, place.end))
                del self._waiting[frame.number]
        if not self._waiting:
            self._opener.complete()

    # --- the end

    def _fail(self, error: Exception) -> None:
        why = str(error) or repr(error)
        if self._end(why):
            _log.warning("the start is slower than it could be, its bundle %s does not come: %s", self.key, why)

    def _end(self, failed: str = "") -> bool:
        """Lets go of all that wait, and of what nobody needs any more; whether it had not ended before."""
        with self._lock:
            first = not self._ended.is_set()
            if first:
                self.failed = failed
            self._ended.set()
            self._cut = RangeBuffer([])
            waiting = list(self._waiting.values())
            self._waiting.clear()
            self._coming.clear()
        self._stream.stop()
        self._opener.stop()
        for frame in waiting:
            frame.landed.set()
        self._head_known.set()
        return first
