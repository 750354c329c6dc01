"""Decodes the frames of a bundle, verifies what is in them, and hands it to the staging area and the cache.

Frames that the start is expected to read are decoded first, by number, so that what is read soon is not held up by what is
read later. Frames that it may read besides stay as they came until somebody reads them, or the start should be over: 60 MB
of a machine-learning stack took 0.25 s of its start.
"""

import heapq
import logging
import threading
from collections.abc import Callable

from blockmap.cache.cache import Cache
from blockmap.cache.staging import StagingArea
from blockmap.cache.verifier import Verifier
from blockmap.errors import FormatError, HostError
from blockmap.format import BLOCK
from blockmap.format import bundle as bundles
from blockmap.format.bundle import BundleHead, NodeAt, Piece
from blockmap.replay.node_stager import NodeStager
from blockmap.store.packs import Packs

_log = logging.getLogger(__name__)

_REST_S = 3.0
"""Seconds from when all that is expected to be read is decoded until the rest is: by then most starts are over, and no longer
need the processors for themselves."""


class BundleFrame:
    """A frame with something that the host lacks; `landed` is set once that is at hand, or will not come."""

    __slots__ = ("landed", "last_range", "nodes", "number", "pieces", "wanted")

    def __init__(self, number: int, last_range: int, wanted: bool) -> None:
        self.number = number
        self.last_range = last_range
        """The number of the last range that brings a part of it."""
        self.wanted = wanted
        """Whether somebody reads it, or is expected to."""
        self.nodes: list[NodeAt] = []
        self.pieces: list[Piece] = []
        self.landed = threading.Event()


class FrameQueue:
    """Frames as they came from the store, the wanted ones by number. Not safe to share: whoever owns it holds a lock."""

    def __init__(self) -> None:
        self._wanted: list[tuple[int, BundleFrame, memoryview]] = []
        """A heap."""
        self._others: dict[int, tuple[BundleFrame, memoryview]] = {}

    def __bool__(self) -> bool:
        """Returns True if it holds a wanted frame."""
        return bool(self._wanted)

    @property
    def has_others(self) -> bool:
        """Returns True if it holds a frame that nobody wants yet."""
        return bool(self._others)

    def put(self, frame: BundleFrame, stored: memoryview) -> None:
        """Adds a frame that has come, as it is stored."""
        if frame.wanted:
            heapq.heappush(self._wanted, (frame.number, frame, stored))
        else:
            self._others[frame.number] = frame, stored

    def claim(self, frame: BundleFrame) -> memoryview | None:
        """Marks a frame as wanted. Returns it as stored, for the caller to decode, if it has come and nobody wanted it."""
        frame.wanted = True
        found = self._others.pop(frame.number, None)
        return None if found is None else found[1]

    def want_all(self) -> None:
        """Makes all frames that have come wanted ones."""
        for frame, stored in self._others.values():
            heapq.heappush(self._wanted, (frame.number, frame, stored))
        self._others.clear()

    def take(self) -> tuple[BundleFrame, memoryview]:
        """Removes the first wanted frame, and returns it with its stored form."""
        _, frame, stored = heapq.heappop(self._wanted)
        return frame, stored

    def clear(self) -> list[BundleFrame]:
        """Removes all frames, and returns them."""
        found = [*(frame for _, frame, _ in self._wanted), *(frame for frame, _ in self._others.values())]
        self._wanted.clear()
        self._others.clear()
        return found


class FrameDecoder:
    """Decodes the frames of one bundle, in a thread of its own; safe to share between threads."""

    def __init__(
        self,
        key: str,
        cache: Cache,
        staging: StagingArea,
        nodes: NodeStager,
        verifier: Verifier,
        end: Callable[[], object],
        fail: Callable[[Exception], object],
    ) -> None:
        """`key` is the bundle's; `end` is called when all frames are decoded, or `fail` with the reason why they are not."""
        self.chunks = 0
        """Parts of chunks that were new to the host."""
        self.damaged = 0
        """Parts of chunks, and nodes, that were not what their names say."""
        self._key, self._cache, self._staging, self._nodes, self._verifier = key, cache, staging, nodes, verifier
        self._end, self._fail = end, fail
        # Guards what follows, and `damaged`; no other lock is taken while it is held.
        self._changed = threading.Condition()
        self._head: BundleHead | None = None
        self._queue = FrameQueue()
        self._complete = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="frame decoder", daemon=True)
        self._thread.start()

    def begin(self, head: BundleHead) -> None:
        """Learns what the bundle holds, before the first frame is put."""
        self._head = head

    def put(self, frame: BundleFrame, stored: memoryview) -> None:
        """Queues a frame that has come, as it is stored."""
        with self._changed:
            self._queue.put(frame, stored)
            self._changed.notify_all()

    def complete(self) -> None:
        """Learns that no more frames will be put."""
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def promote(self, frame: BundleFrame) -> None:
        """Brings a frame forward that somebody reads. If nobody was expected to, and it has come, it is decoded in the calling
        thread, as handing it on takes longer."""
        if frame.wanted:
            return
        with self._changed:
            stored = self._queue.claim(frame)
        if stored is not None:
            self._decode(frame, stored)

    def stop(self) -> None:
        """Drops all frames that are not decoded yet; nobody waits for them any more."""
        with self._changed:
            self._stopped = True
            left = self._queue.clear()
            self._changed.notify_all()
        for frame in left:
            frame.landed.set()

    def join(self) -> None:
        """Waits until the thread has ended, which it does when all frames are decoded, or it was stopped."""
        self._thread.join()

    def _run(self) -> None:
        while (found := self._next()) is not None:
            self._decode(*found)
        self._end()

    def _next(self) -> tuple[BundleFrame, memoryview] | None:
        """Waits for a frame to decode; returns None when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopped or self._complete)
            only_others = not self._queue and self._queue.has_others
            if only_others and not self._changed.wait_for(lambda: self._queue or self._stopped, _REST_S):
                self._queue.want_all()
            return self._queue.take() if self._queue else None

    def _decode(self, frame: BundleFrame, stored: memoryview) -> None:
        """Puts what is in a frame at hand. Damage is noted; any other error ends the replay."""
        try:
            assert self._head is not None
            self._unpack(self._head, frame, stored)
        except FormatError as error:
            self._note_damage(len(frame.pieces) + len(frame.nodes), f"frame {frame.number}: {error}")
        except Exception as error:
            self._fail(error)
        finally:
            frame.landed.set()

    def _unpack(self, head: BundleHead, frame: BundleFrame, stored: memoryview) -> None:
        """Raises FormatError where the frame is damaged as a whole, HostError where the cache takes nothing."""
        # A copy, as a frame may be stored without compression: a view of it would keep its whole range in memory.
        content = memoryview(bytes(Packs.open_frame(head, frame.number, stored)))
        for own in frame.nodes:
            damaged = self._nodes.put(own.node, bytes(content[own.offset : own.offset + own.length]))
            if damaged:
                self._note_damage(damaged, f"{damaged} nodes are not what they should be")
        for piece in frame.pieces:
            data = content[piece.offset : piece.offset + piece.mask.bit_count() * BLOCK]
            if not self._verifier.run(bundles.is_good, piece, data):
                self._note_damage(1, f"frame {frame.number} has other blocks than its chunks have")
            elif self._staging.put(piece, data):
                self.chunks += 1
            else:
                raise HostError(f"the cache {self._cache.directory} takes nothing")

    def _note_damage(self, count: int, why: str) -> None:
        """Counts damage, and logs the first: every frame of a damaged bundle may be."""
        with self._changed:
            first = not self.damaged
            self.damaged += count
        if first:
            _log.warning(
                "the start is slower than it could be, its bundle %s is damaged in part: %s; what is missing is fetched "
                "when it is read", self._key, why,
            )  # fmt: skip
