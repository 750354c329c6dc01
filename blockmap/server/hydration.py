"""Fetches the rest of a volume into the cache, so that the host can do without the store.

It goes on in volume order, which is that of the packs, while the link has room beside what readers wait for, and at half of
the link's rate.
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
from blockmap.store.concurrent import spawn
from blockmap.store.packs import NodeRef
from blockmap.store.plan import Wanted
from blockmap.store.walk import leaves
from blockmap.volume.leaves import all_chunks, bring_nodes, load_node

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

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._lock = threading.Lock()  # guards what follows; never held across I/O, nor while another lock is taken
        self._latest: dict[Digest, Hydration] = {}
        self._closing = False

    def begin(self, found: ResolvedStart) -> None:
        """Begins to fetch all of a version, unless that is under way."""
        resolved = found.resolved
        with self._lock:
            at_work = self._latest.get(resolved.name)
            if not self._closing and (at_work is None or at_work.ended):
                self._latest[resolved.name] = Hydration(resolved.pinned, resolved.root, self._fetcher, found.replay)

    def follow(self, found: ResolvedStart) -> None:
        """Begins, when its bundle has come, to fetch all of a version most of which its starts read: lazy must not be
        slower than a pull."""
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
            latest = list(self._latest.values())
        for each in latest:
            each.stop()

    def _follow(self, found: ResolvedStart, replay: Replay) -> None:
        if not replay.wait_end(_COVERED_SECONDS) or replay.head is None or replay.failed:
            return
        if sum(each.blocks for each in replay.head.read_items) > _COVERED_SHARE * replay.head.image_blocks:
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
