"""Fetches the rest of a volume into the cache: all of it, so that the host can do without the store, or what starts miss.

All of it comes in volume order, which is that of the packs, while the link has room beside what readers wait for, and at half
of the link's rate. What starts miss is `start_hydration`'s to choose.
"""

import logging
import threading
import time
from collections.abc import Sequence

from blockmap.errors import BlockmapError
from blockmap.fetch.fetcher import Fetcher
from blockmap.format.digest import Digest
from blockmap.format.node import Node
from blockmap.format.tree import Root
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.replay.replay import Replay
from blockmap.server.opener import ResolvedStart
from blockmap.server.start_hydration import StartHydration
from blockmap.store.concurrent import spawn
from blockmap.store.packs import NodeRef
from blockmap.store.plan import Wanted
from blockmap.store.walk import leaves
from blockmap.volume.leaves import all_chunks, bring_nodes, load_node
from blockmap.volume.start import Key, Start

_log = logging.getLogger(__name__)

_RATE_SHARE = 0.5
"""The share of the link's rate that a hydration uses."""
_POLICY = OutagePolicy(3600.0)
_AT_ONCE_BYTES = 4 << 20
_REPLAY_SECONDS = 600.0
_COVERED_SECONDS = 3600.0
_COVERED_SHARE = 0.5
"""The whole image is fetched if its starts read a larger share of its blocks."""


class Hydrations:
    """The hydrations of one server, one at a time of each version; safe to share between threads."""

    def __init__(self, fetcher: Fetcher, unasked: bool = True) -> None:
        """`unasked`: what a start does not wait for is brought though nobody asked for it."""
        self._fetcher = fetcher
        self._unasked = unasked
        self._lock = threading.Lock()  # guards what follows; never held across I/O, nor while another lock is taken
        self._latest: dict[Digest, Hydration] = {}
        self._running: dict[StartHydration, threading.Thread] = {}
        self._refused: set[Key] = set()
        """The starts, the next of which brings nothing unasked."""
        self._closing = False

    def begin(self, found: ResolvedStart) -> None:
        """Begins to fetch all of a version, unless that is under way."""
        resolved = found.resolved
        with self._lock:
            at_work = self._latest.get(resolved.name)
            if not self._closing and (at_work is None or at_work.ended):
                self._latest[resolved.name] = Hydration(resolved.pinned, resolved.root, self._fetcher, found.replay)

    def refuse(self, key: Key) -> None:
        """Has nothing brought unasked for the next start of a version and label, nor from now on for one that is there."""
        with self._lock:
            self._refused.add(key)
            running = [own for own in self._running if own.key == key]
        for own in running:
            own.stop()

    def follow(self, found: ResolvedStart, start: Start) -> None:
        """Follows a start that has just begun, as lazy must not be slower than a pull.

        Begins to bring the rest of the version where reads go on missing, or, when the bundle has come, where its starts read
        most of it.
        """
        with self._lock:
            if not self._unasked or start.key in self._refused:
                self._refused.discard(start.key)
                return
        own = StartHydration(start, self._fetcher)
        start.misses.noted = lambda: self._missed(own)
        replay = found.replay
        if replay is not None:
            spawn(lambda: self._follow(found, replay))

    def status(self) -> list[dict[str, object]]:
        with self._lock:
            latest = list(self._latest.values())
        return [each.status() for each in latest]

    def close(self) -> None:
        """Ends all; if the fetcher has not been stopped before, waits for what is under way."""
        with self._lock:
            self._closing = True
            latest, running = list(self._latest.values()), dict(self._running)
        for each in latest:
            each.stop()
        for own, thread in running.items():
            own.stop()
            thread.join()

    def _missed(self, own: StartHydration) -> None:
        """Is called at each miss of a start."""
        own.wake()
        if own in self._running or not own.is_due() or not self._may(own.key):
            return
        with self._lock:
            if own not in self._running and not self._closing:
                thread = threading.Thread(target=self._run, args=(own,), name="start hydration", daemon=True)
                self._running[own] = thread
                thread.start()

    def _run(self, own: StartHydration) -> None:
        try:
            own.run()
        finally:
            with self._lock:
                del self._running[own]

    def _may(self, key: Key) -> bool:
        """Returns True if something may be brought unasked for a start."""
        with self._lock:
            return key not in self._refused and not self._closing

    def _follow(self, found: ResolvedStart, replay: Replay) -> None:
        if not replay.wait_end(_COVERED_SECONDS) or replay.head is None or replay.failed:
            return
        read = sum(each.blocks for each in replay.head.read_items)
        if read > _COVERED_SHARE * replay.head.image_blocks and self._may(found.key):
            self.begin(found)


class Hydration:
    """Hydrates one volume, in a thread of its own that ends by itself."""

    def __init__(self, name: str, root: Root, fetcher: Fetcher, replay: Replay | None = None) -> None:
        """Begins when `replay` has ended, if there is one: the blocks that a start reads come first."""
        self.name = name
        self.done_bytes = 0
        """Bytes, as stored, of the chunks that the cache has."""
        self.ended = ""
        """How it ended; empty until then."""
        self._root = root
        self._fetcher = fetcher
        self._replay = replay
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hydrate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it; if the fetcher has not been stopped before, waits for what is under way."""
        self._stop.set()
        self._thread.join()

    def status(self) -> dict[str, object]:
        return {"export": self.name, "bytes": self.done_bytes, "state": self.ended or "running"}

    def _run(self) -> None:
        if self._replay is not None:
            self._replay.wait_end(_REPLAY_SECONDS)
        try:
            for _, leaf in leaves(self._root, self._load):
                wanted, size = [], 0
                for item in all_chunks(leaf):
                    wanted.append(item)
                    size += item.place.stored
                    if size >= _AT_ONCE_BYTES:
                        self._bring(wanted, size)
                        wanted, size = [], 0
                self._bring(wanted, size)
                if self._stop.is_set():
                    self.ended = "stopped"
                    return
            self.ended = "complete"
            _log.info("all of %s is in the cache, as far as that has room for it", self.name)
        except BlockmapError as error:
            self.ended = f"failed: {error}"
            _log.warning("%s is not brought to its end: %s", self.name, error)

    def _load(self, refs: Sequence[NodeRef]) -> list[Node]:
        bring_nodes(self._fetcher, refs)
        return [load_node(self._fetcher, name, place, self._fetcher.outage.attempt(_POLICY)) for name, place in refs]

    def _bring(self, wanted: list[Wanted], size: int) -> None:
        if self._stop.is_set():
            return
        began = time.monotonic()
        came = self._fetcher.complete(wanted)
        self.done_bytes += size
        pause = came / (_RATE_SHARE * self._fetcher.bytes_per_s) - (time.monotonic() - began)
        if came and pause > 0:
            self._stop.wait(pause)
