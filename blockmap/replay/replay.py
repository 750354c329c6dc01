"""Replays a bundle: streams what a start is known to read into the cache, in the order in which it reads it.

All of it is asked for at once, in ranges that grow, as far as the link holds them. If the cache is empty, the ranges are
chosen before the head is there, so that the first data comes with it; else the head says which frames hold something that
the host lacks (`plan`). A reader whose blocks come soon waits for them; one whose blocks are further down fetches its chunk
itself. What does not come, or comes damaged, is fetched when it is read.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from blockmap.cache.cache import Cache
from blockmap.cache.staging import StagingArea
from blockmap.cache.verifier import Verifier
from blockmap.errors import Corrupt, NotFound
from blockmap.format import BLOCK, keys
from blockmap.format.bundle import BundleHead
from blockmap.format.hint import BundleRef
from blockmap.format.tree import Root
from blockmap.origin.ranges import Ranges
from blockmap.replay import head_cache
from blockmap.replay.frames import FrameDecoder
from blockmap.replay.node_stager import NodeStager
from blockmap.replay.plan import Missing, ReplayPlan, all_ranges, find_missing, head_range
from blockmap.replay.range_buffer import Range, RangeBuffer
from blockmap.replay.stream import Stream

_log = logging.getLogger(__name__)

_EMPTY_SLOTS = 64
"""A cache with no more slots counts as empty: another image's nodes take as many."""
_PATROL_S = 0.5
"""Seconds after which a reader that waits for a frame sees that the store is away."""
_STALL_S = 2.0
"""Seconds that a reader waits for a frame, so that a stream that stalls does not hold it up."""
_SOON_S = 0.2
"""Seconds of the link's time: what comes within them comes soon."""
_READY_S = 10.0
"""Seconds from the beginning during which nodes are waited for."""
_START_S = 60.0
"""Seconds from the beginning after which a start counts as over."""
_AGAIN_S = 10.0
"""Seconds after which a bundle that failed is asked for again."""
_FEW_MISSES = 8
"""Missed reads after which misses bring their neighbours again: until then the bundle has nearly all that the start reads. One
is enough if the bundle was ported from another version, as what is new in this one is missed together."""


class Replay:
    """One bundle on its way into the cache; safe to share between threads."""

    def __init__(
        self,
        ref: BundleRef,
        root: Callable[[], Root],
        ranges: Ranges,
        cache: Cache,
        staging: StagingArea,
        room: threading.Semaphore,
        verifier: Verifier,
        judge: Callable[[bool], object],
    ) -> None:
        """`root` returns the volume's, and may take its time; `room` limits the requests of all replays; `judge` is told
        whether the head was verified, unless it does not come."""
        self.ref = ref
        self.key = ref.key
        about = keys.parse_bundle(ref.key)
        self.number = about[1] if about is not None else 0
        """The number of the profile that the bundle was made of."""
        self.head: BundleHead | None = None
        self.failed = ""
        """Why the replay ended before its time."""
        # These are counted without a lock, so that a count may be lost.
        self.waited_reads = 0
        """Reads that waited for blocks which were to come soon."""
        self.bypassed_reads = 0
        """Reads of blocks that were far down, which did not wait."""
        self.missed_reads = 0
        """Reads of blocks that the bundle does not bring."""
        self.root, self._judge = root, judge
        self._ranges, self._cache, self._staging = ranges, cache, staging
        self._began = time.monotonic()
        self._stalled_at = -1
        """Bytes that had come when a reader waited in vain."""
        self._head_known, self._ended = threading.Event(), threading.Event()
        self._stream = Stream(ref.key, ranges, room, self._take, self._fail)
        # Guards what follows; never held across I/O; the decoder's lock is taken while it is held.
        self._lock = threading.Lock()
        self._buffer = RangeBuffer([])
        self._plan: ReplayPlan | None = None
        """None before the head is known, and after the end."""
        self._nodes = NodeStager(cache)
        self._decoder = FrameDecoder(ref.key, cache, staging, self._nodes, verifier, self._end, self._fail)
        threading.Thread(target=self._run, name="replay", daemon=True).start()

    # --- for readers

    def wait(self, key: bytes, mask: int, seconds: float = _STALL_S) -> bool:
        """Waits for the blocks `mask` of a chunk if they come soon, and no longer than `seconds`; returns True if they have
        come."""
        plan = self._plan
        frames = None if plan is None else plan.frames_with(key, mask)
        if frames is None:
            self.missed_reads += 1
            return False
        for frame in frames:
            self._decoder.promote(frame)
        stalled = self._stream.came == self._stalled_at or self._ranges.outage.away
        late = stalled or self._stream.is_far(frames[-1].last_range)
        if late and not all(frame.landed.is_set() for frame in frames):
            self.bypassed_reads += 1
            return False
        self.waited_reads += 1
        end = time.monotonic() + min(_STALL_S, seconds)
        if all(frame.landed.wait(max(end - time.monotonic(), 0.0)) for frame in frames):
            return True
        self._stalled_at = self._stream.came
        return False

    def is_start(self) -> bool:
        """Returns True while the start goes on, and the bundle brings nearly all that it reads."""
        return not self.failed and time.monotonic() - self._began < _START_S

    def skips_readahead(self) -> bool:
        """Returns True if a read that misses is to bring nothing but what it asks for."""
        enough = 1 if self.head is not None and self.head.ported else _FEW_MISSES
        return self.missed_reads < enough and self.is_start()

    def wait_nodes(self, seconds: float = _READY_S) -> bool:
        """Waits for the nodes that come before all chunks, for a limited time; returns True if nothing failed."""
        end = min(self._began + _READY_S, time.monotonic() + seconds)
        if not self._wait_until(self._head_known, end):
            return False
        plan = self._plan
        tree = [] if plan is None else plan.tree
        return all(self._wait_until(frame.landed, end) for frame in tree) and not self.failed

    def _wait_until(self, event: threading.Event, end: float) -> bool:
        """Returns True if the event comes before `end`; gives up at once where the store is away."""
        while not event.wait(min(_PATROL_S, max(end - time.monotonic(), 0))):
            if self._ranges.outage.away or time.monotonic() >= end:
                return False
        return True

    def wait_head(self, seconds: float) -> BundleHead | None:
        """Returns what the bundle holds; None where that is not known in time."""
        self._head_known.wait(seconds)
        return self.head

    def soon_blocks(self, head: BundleHead) -> int:
        """Returns how many blocks come within a moment, or how many the bundle has when nothing is under way any more."""
        stored, raw = sum(frame.stored for frame in head.frames), sum(frame.raw for frame in head.frames)
        if self._ended.is_set() or not stored:
            return raw // BLOCK
        return int(self._ranges.bytes_per_s * _SOON_S * raw / stored) // BLOCK

    def is_recent(self) -> bool:
        """Returns True while it goes on, and for a while after: one start opens an export more than once."""
        return not self._ended.is_set() or time.monotonic() - self._began < (_AGAIN_S if self.failed else _START_S)

    @property
    def bytes(self) -> int:
        """Bytes that were read from the store."""
        return self._stream.bytes

    @property
    def chunks(self) -> int:
        """Parts of chunks that were new to the host."""
        return self._decoder.chunks

    @property
    def damaged(self) -> int:
        """Parts of chunks, and nodes, that were not what their names say."""
        return self._decoder.damaged

    @property
    def ended(self) -> bool:
        """Returns True if nothing is on its way any more."""
        return self._ended.is_set()

    def wait_end(self, seconds: float) -> bool:
        """Returns True if the replay ends in time."""
        return self._ended.wait(seconds)

    def stop(self) -> None:
        """Ends the replay before its time."""
        self._end("stopped")

    def close(self) -> None:
        """Ends the replay, after which it touches cache and staging area no more."""
        self.stop()
        self._decoder.join()

    def status(self) -> dict[str, object]:
        """Returns counters, for people and machines."""
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

    # --- what comes

    def _run(self) -> None:
        try:
            head = head_cache.load(self._cache, self.ref, self.root)
            if head is None and self._cache.status()["slots"] + self._staging.count <= _EMPTY_SLOTS:
                self._choose(all_ranges(self.ref))
                self._stream.ask()
                return
            have = None
            if head is None:
                have = self._stream.read(*head_range(self.ref))
                head = head_cache.store(self._cache, self.ref, self.root(), have)
            missing = self._find_missing(head)
            self._choose(missing.ranges(0 if have is None else len(have)))
            self._enter(missing)
            self._stream.ask(have)
        except Exception as error:
            self._fail(error)

    def _choose(self, ranges: Iterable[Range]) -> None:
        self._buffer = RangeBuffer(ranges)
        self._stream.plan(self._buffer.ranges)

    def _find_missing(self, head: BundleHead) -> Missing:
        self._nodes.begin(self.root())
        return find_missing(head, self._staging.has, self._nodes.has)

    def _enter(self, missing: Missing) -> None:
        """Learns which frames come, after which readers may wait for them."""
        self._judge(True)
        self._decoder.begin(missing.head)
        plan = ReplayPlan(missing, self._buffer)
        with self._lock:
            if self._ended.is_set():
                return
            self._plan, self.head = plan, plan.head
            self._decode(plan, self._buffer.expect(plan.parts))
        self._head_known.set()
        self._stream.know(max((frame.last_range for frame in plan.frames.values()), default=0))

    def _take(self, number: int, data: memoryview) -> None:
        """Takes a range that has come."""
        if self.head is None and number == 0:
            self._enter(self._find_missing(head_cache.store(self._cache, self.ref, self.root(), data)))
        with self._lock:
            if self._ended.is_set():
                return
            whole = self._buffer.put(number, data)
            if self._plan is not None:
                self._decode(self._plan, whole)

    def _decode(self, plan: ReplayPlan, whole: Iterable[tuple[int, memoryview]]) -> None:
        """Hands on the frames of which all has come; called with the lock, as the last must not overtake any other."""
        for number, stored in whole:
            self._decoder.put(plan.frames[number], stored)
        if not self._buffer.left:
            self._decoder.complete()

    # --- the end

    def _fail(self, error: Exception) -> None:
        why = str(error) or repr(error)
        if self.head is None and isinstance(error, (Corrupt, NotFound)):
            self._judge(False)
        if self._end(why):
            _log.warning("the start is slower than it could be, its bundle %s does not come: %s", self.key, why)

    def _end(self, failed: str = "") -> bool:
        """Releases whoever waits, and what nobody needs any more. Returns True the first time."""
        with self._lock:
            first = not self._ended.is_set()
            if first:
                self.failed = failed
            self._ended.set()
            left = [] if self._plan is None else [self._plan.frames[number] for number in self._buffer.left]
            self._buffer, self._plan = RangeBuffer([]), None
        self._stream.stop()
        self._decoder.stop()
        for frame in left:
            frame.landed.set()
        self._head_known.set()
        return first
