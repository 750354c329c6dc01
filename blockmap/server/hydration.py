"""Brings the rest of a volume into the cache, so that the host can do without the store.

In volume order, which is that of the packs; while the link has room beside what readers wait for, and at half of its rate.
"""

import logging
import threading
import time
from collections.abc import Sequence

from blockmap.errors import BlockmapError
from blockmap.fetch.fetcher import Fetcher
from blockmap.format.node import Node
from blockmap.format.tree import Root
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.replay.replay import Replay
from blockmap.store.packs import NodeRef
from blockmap.store.plan import Wanted
from blockmap.store.walk import leaves
from blockmap.volume.leaves import all_chunks, bring_nodes, load_node

_log = logging.getLogger(__name__)

_SHARE = 0.5
"""Of the link's rate."""
_PATIENCE = OutagePolicy(3600.0)
_AT_ONCE_BYTES = 4 << 20
_REPLAY_SECONDS = 600.0


class Hydration:
    """One volume, in a thread of its own that ends by itself."""

    def __init__(self, name: str, root: Root, fetcher: Fetcher, replay: Replay | None = None) -> None:
        """Begins when `replay` has ended, where there is one: what a start reads comes first."""
        self.name = name
        self.done_bytes = 0
        """Of chunks that are at hand, as stored."""
        self.ended = ""
        """How it ended; empty until then."""
        self._root = root
        self._fetcher = fetcher
        self._replay = replay
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hydrate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The fetcher must have been stopped before, or it waits for what is under way."""
        self._stop.set()
        self._thread.join()

    def status(self) -> dict[str, object]:
        return {"export": self.name, "bytes": self.done_bytes, "ended": self.ended}

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
        return [load_node(self._fetcher, name, place, _PATIENCE) for name, place in refs]

    def _bring(self, wanted: list[Wanted], size: int) -> None:
        if self._stop.is_set():
            return
        began = time.monotonic()
        came = self._fetcher.complete(wanted)
        self.done_bytes += size
        pause = came / (_SHARE * self._fetcher.bytes_per_s) - (time.monotonic() - began)
        if came and pause > 0:
            self._stop.wait(pause)
