"""The frames of a bundle: opened one after the other as they come, verified, and at hand from then on.

What starts are expected to read is opened first, by number, so that what is read soon is not held up by what is read later.
What they may read besides stays as it came until somebody reads it, or the start should be over: of a machine-learning
stack that is 60 MB, which took 0.25 s of its start.
"""

import heapq
import logging
import threading
from collections.abc import Callable

from blockmap.cache.cache import Cache
from blockmap.cache.staging import StagingArea
from blockmap.errors import FormatError, HostError
from blockmap.format import BLOCK
from blockmap.format import bundle as bundles
from blockmap.format.bundle import BundleHead, NodeAt, Piece
from blockmap.replay.node_stager import NodeStager
from blockmap.store.packs import Packs

_log = logging.getLogger(__name__)

_REST_S = 3.0
"""When all that is expected to be read has been opened for so long, the rest is: most starts are over, and its share of the
processors with them."""


class BundleFrame:
    """A frame with something new; `landed` once what it holds is at hand, or will not come."""

    __slots__ = ("first", "landed", "last", "number", "pieces", "stems", "wanted")

    def __init__(self, number: int, first: int, last: int, wanted: bool) -> None:
        self.number = number
        self.first, self.last = first, last  # of the ranges that bring it
        self.wanted = wanted
        """Whether somebody reads it, or is expected to."""
        self.stems: list[NodeAt] = []
        self.pieces: list[Piece] = []
        self.landed = threading.Event()


class FrameQueue:
    """Those that have come: the wanted ones, by number, and the others. Not safe to share: whoever owns it holds a lock."""

    def __init__(self) -> None:
        self._wanted: list[tuple[int, BundleFrame, memoryview]] = []
        """A heap."""
        self._others: dict[int, tuple[BundleFrame, memoryview]] = {}

    def __bool__(self) -> bool:
        """Whether there is something to open now."""
        return bool(self._wanted)

    @property
    def rest(self) -> bool:
        """Whether there is something that nobody wants yet."""
        return bool(self._others)

    def put(self, frame: BundleFrame, stored: memoryview) -> None:
        """A frame has come, as it is stored."""
        if frame.wanted:
            heapq.heappush(self._wanted, (frame.number, frame, stored))
        else:
            self._others[frame.number] = frame, stored

    def want(self, frame: BundleFrame) -> memoryview | None:
        """Somebody reads it: what it is as stored, for the reader to open, if it has come and was not wanted before."""
        frame.wanted = True
        found = self._others.pop(frame.number, None)
        return None if found is None else found[1]

    def want_all(self) -> None:
        for frame, stored in self._others.values():
            heapq.heappush(self._wanted, (frame.number, frame, stored))
        self._others.clear()

    def take(self) -> tuple[BundleFrame, memoryview]:
        """The first of those that are wanted."""
        _, frame, stored = heapq.heappop(self._wanted)
        return frame, stored

    def clear(self) -> list[BundleFrame]:
        """Forgets all; what it was."""
        found = [*(frame for _, frame, _ in self._wanted), *(frame for frame, _ in self._others.values())]
        self._wanted.clear()
        self._others.clear()
        return found


class FrameDecoder:
    """Opens frames, in a thread of its own; safe to share between threads."""

    def __init__(
        self,
        key: str,
        cache: Cache,
        landing: StagingArea,
        stems: NodeStager,
        verifying: threading.Lock,
        end: Callable[[], object],
        fail: Callable[[Exception], object],
    ) -> None:
        """`key` is that of the bundle; `end` is called when all are open, or `fail` with why they will not be."""
        self.chunks = self.damaged = 0
        """That were new; that were damaged."""
        self._key, self._cache, self._landing, self._stems, self._verifying = key, cache, landing, stems, verifying
        self._end, self._fail = end, fail
        self._changed = threading.Condition()  # guards what follows; no other lock is taken while it is held
        self._head: BundleHead | None = None
        self._come = FrameQueue()
        self._complete = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="opener", daemon=True)
        self._thread.start()

    def begin(self, head: BundleHead) -> None:
        """What the bundle holds, before any of its frames."""
        self._head = head

    def put(self, frame: BundleFrame, stored: memoryview) -> None:
        """A frame has come, as it is stored."""
        with self._changed:
            self._come.put(frame, stored)
            self._changed.notify_all()

    def complete(self) -> None:
        """All have come."""
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def promote(self, frame: BundleFrame) -> None:
        """Somebody reads it: if nobody was expected to, and it has come, it is opened here, as handing it on takes longer."""
        if frame.wanted:
            return
        with self._changed:
            stored = self._come.want(frame)
        if stored is not None:
            self._open(frame, stored)

    def stop(self) -> None:
        """Forgets what is not open yet; who waits for it is told."""
        with self._changed:
            self._stopped = True
            left = self._come.clear()
            self._changed.notify_all()
        for frame in left:
            frame.landed.set()

    def join(self) -> None:
        """Waits until the thread has ended, which it does when all are open, or it was stopped."""
        self._thread.join()

    def _run(self) -> None:
        while (found := self._next()) is not None:
            self._open(*found)
        self._end()

    def _next(self) -> tuple[BundleFrame, memoryview] | None:
        """Waits for a frame to open; None where there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._come or self._stopped or self._complete)
            alone = not self._come and self._come.rest
            if alone and not self._changed.wait_for(lambda: self._come or self._stopped, _REST_S):
                self._come.want_all()
            return self._come.take() if self._come else None

    def _open(self, frame: BundleFrame, stored: memoryview) -> None:
        """Has what is in a frame at hand; where that does not work, it all ends."""
        try:
            assert self._head is not None
            self._land(self._head, frame, stored)
        except FormatError as error:
            self._note_damage(len(frame.pieces) + len(frame.stems), f"frame {frame.number}: {error}")
        except Exception as error:
            self._fail(error)
        finally:
            frame.landed.set()

    def _land(self, head: BundleHead, frame: BundleFrame, stored: memoryview) -> None:
        """FormatError where the frame is damaged as a whole; HostError."""
        # A copy of what is not compressed, else a few KiB in the landing would keep the range in memory that brought them.
        content = memoryview(bytes(Packs.open_frame(head, frame.number, stored)))
        for stem in frame.stems:
            damaged = self._stems.put(stem.node, bytes(content[stem.offset : stem.offset + stem.length]))
            if damaged:
                self._note_damage(damaged, f"{damaged} nodes are not what they should be")
        for piece in frame.pieces:
            data = content[piece.offset : piece.offset + piece.mask.bit_count() * BLOCK]
            with self._verifying:
                good = bundles.is_good(piece, data)
            if not good:
                self._note_damage(1, f"frame {frame.number} has other blocks than its chunks have")
            elif self._landing.put(piece, data):
                self.chunks += 1
            else:
                raise HostError(f"the cache {self._cache.directory} does not take it")

    def _note_damage(self, count: int, why: str) -> None:
        """Says so once: of a bundle that is damaged, every frame may be."""
        with self._changed:
            first = not self.damaged
            self.damaged += count
        if first:
            _log.warning(
                "the start is slower than it could be, its bundle %s is damaged in part: %s; what is missing is fetched "
                "when it is read", self._key, why,
            )  # fmt: skip
