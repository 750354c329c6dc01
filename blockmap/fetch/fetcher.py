"""Brings chunks and nodes from the store, once each however many wait, and keeps them in the cache.

A reader that misses becomes the leader of a flight for its chunk: it reads the chunk and its neighbours in one range,
verifies its own first, and goes on; a helper thread verifies the neighbours and puts them into the cache. Whoever wants
a chunk in flight waits for it. What arrives damaged is fetched once more before it is an error.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256

from blockmap.errors import Corrupt, FormatError
from blockmap.fetch.cache import Cache
from blockmap.fetch.plan import MIN_REQUEST_BYTES, Wanted, joined
from blockmap.format import node as nodes
from blockmap.format.digest import Digest
from blockmap.format.node import Inner, Node, Placement
from blockmap.format.tree import Root
from blockmap.format.version import Run
from blockmap.store.repository import Repository, open_chunk, open_node

_log = logging.getLogger(__name__)


class _Flight:
    """A chunk on its way; `data` is set before `landed`, or never where it failed."""

    __slots__ = ("data", "landed")

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.data: bytes | None = None


class Fetcher:
    """Chunks and nodes through the cache; safe to share between threads."""

    def __init__(self, repository: Repository, cache: Cache) -> None:
        self.cache = cache
        self._repository = repository
        self._lock = threading.Lock()  # guards _flights and the counters; never held across I/O
        self._flights: dict[Digest, _Flight] = {}
        self._helpers = ThreadPoolExecutor(2, "neighbours")
        # Apart from the helpers, on which readers wait: what is wanted for later does not delay them.
        self._bringers = ThreadPoolExecutor(2, "wanted")
        self._requests = self._chunks = self._bytes = self._damaged = self._failed = 0

    def chunk(self, wanted: Callable[[], list[Wanted]], name: Digest) -> bytes:
        """The content of a chunk that the cache has not; `wanted` gives it and what comes after it in the volume.

        Raises Corrupt, NotFound, StoreUnavailable.
        """
        with self._lock:
            flight = self._flights.get(name)
            landed = flight is None and self.cache.lookup(name) >= 0
            if flight is None:
                own = self._flights[name] = _Flight()
        if landed and (data := self.cache.get(name)) is not None:
            self._deliver(name, own, data, store=False)
            return data
        if flight is not None:
            flight.landed.wait()
            if flight.data is not None:
                return flight.data
            # The leader of a whole range failed: this reader's own attempt decides.
            return self.chunk(wanted, name)
        return self._lead(name, own, wanted)

    def want(self, wanted: list[Wanted]) -> None:
        """Brings chunks in the background; what is at hand or in flight already is left out. Never blocks or raises."""
        with suppress(RuntimeError):  # closed
            self._bringers.submit(self._bring, wanted)

    def node(self, name: Digest, place: Placement | None) -> Node:
        """A node, from the cache or the store; raises Corrupt, NotFound, StoreUnavailable."""
        if place is None:
            raise Corrupt(f"nothing says where node {name.hex()} is stored")
        key = _frame_key(name, place)
        frame = self.cache.get(key)
        if frame is not None:
            try:
                return nodes.decode(frame, place.pack, name)
            except FormatError as error:
                _log.warning("the cache's copy of node %s is dropped: %s", name.hex(), error)
                self.cache.discard(self.cache.lookup(key))
        stored = self._range(place.pack, place, place)
        try:
            node, frame = open_node(name, place, stored)
        except Corrupt as error:
            _log.warning("%s; fetched again", error)
            node, frame = open_node(name, place, self._again(place))
        self.cache.put(key, frame)
        return node

    def has_node(self, name: Digest, place: Placement | None) -> bool:
        """Whether the cache has a node, which is not checked."""
        return place is not None and self.cache.lookup(_frame_key(name, place)) >= 0

    def prime(self, run: Run, root: Callable[[], Root]) -> None:
        """Reads a run in one range and keeps the nodes of a tree that it holds; `root` is asked for meanwhile.

        Advice: what is not in it, or damaged, is fetched when it is needed. Raises what reading the range raises.
        """
        whole = Placement(run.pack, 0, run.start, run.end - run.start, 0)
        stored = memoryview(self._range(run.pack, whole, whole))
        top = root()
        waiting: list[tuple[Digest, Placement | None]] = [(top.digest, top.placement)]
        for name, place in waiting:
            if place is None or place.pack != run.pack or not run.start <= place.offset <= run.end - place.stored:
                continue
            at = place.offset - run.start
            try:
                node, frame = open_node(name, place, stored[at : at + place.stored])
            except Corrupt as error:
                _log.warning("%s; it will be fetched again when it is needed", error)
                continue
            self.cache.put(_frame_key(name, place), frame)
            if isinstance(node, Inner):
                waiting.extend(zip(node.children, node.placements, strict=True))

    def status(self) -> dict[str, int]:
        with self._lock:
            return {
                "requests": self._requests,
                "chunks": self._chunks,
                "bytes": self._bytes,
                "damaged": self._damaged,
                "failed": self._failed,
            }

    def close(self) -> None:
        """Ends the threads, when no reader is left."""
        self._bringers.shutdown(wait=True, cancel_futures=True)
        self._helpers.shutdown(wait=True)

    def _bring(self, wanted: list[Wanted]) -> None:
        """Leads a flight for what is neither at hand nor in flight, and waits for no other's."""
        while wanted:
            name = wanted[0].chunk
            with self._lock:
                own = None
                if name not in self._flights and self.cache.lookup(name) < 0:
                    own = self._flights[name] = _Flight()
            taken = 1
            if own is not None:
                rest = wanted
                taken = len(joined(rest, MIN_REQUEST_BYTES, lambda _: False))
                try:
                    self._lead(name, own, lambda: rest)  # noqa: B023 - called before `rest` changes
                except Exception as error:
                    _log.warning("prefetch of chunk %s failed: %s", name.hex(), error)
                    return
            wanted = wanted[taken:]

    def _lead(self, name: Digest, own: _Flight, wanted: Callable[[], list[Wanted]]) -> bytes:
        try:
            return self._fly(name, own, wanted())
        except BaseException:
            self._fail(name, own)
            with self._lock:
                self._failed += 1
            raise

    def _fly(self, name: Digest, own: _Flight, wanted: list[Wanted]) -> bytes:
        lookup, flights = self.cache.lookup, self._flights
        with self._lock:
            plan = joined(wanted, MIN_REQUEST_BYTES, lambda other: other in flights or lookup(other) >= 0)
            followers = []
            for item in plan[1:]:
                if item.chunk not in flights and lookup(item.chunk) < 0:
                    flight = flights[item.chunk] = _Flight()
                    followers.append((item, flight))
        first = plan[0].place
        try:
            stored = memoryview(self._range(first.pack, first, plan[-1].place))
            try:
                data = open_chunk(name, first, stored[: first.stored])
            except Corrupt as error:
                _log.warning("%s; fetched again", error)
                data = open_chunk(name, first, self._again(first))
        except BaseException:
            for item, flight in followers:
                self._fail(item.chunk, flight)
            raise
        self._deliver(name, own, data)
        if followers:
            self._helpers.submit(self._open_followers, followers, stored, first.offset)
        return data

    def _open_followers(self, followers: list[tuple[Wanted, _Flight]], stored: memoryview, start: int) -> None:
        for (name, place), flight in followers:
            at = place.offset - start
            try:
                data = open_chunk(name, place, stored[at : at + place.stored])
            except Exception as error:
                _log.warning("%s; it will be fetched again when it is read", error)
                self._fail(name, flight)
            else:
                self._deliver(name, flight, data)

    def _deliver(self, name: Digest, flight: _Flight, data: bytes, store: bool = True) -> None:
        """Hands a chunk to those who wait, then to the cache; it stays in flight until the cache has it."""
        flight.data = data
        flight.landed.set()
        try:
            if store:
                self.cache.put(name, data)
        except Exception as error:
            _log.warning("chunk %s is not kept in the cache: %s", name.hex(), error)
        finally:
            with self._lock:
                self._flights.pop(name, None)
                self._chunks += store

    def _fail(self, name: Digest, flight: _Flight) -> None:
        with self._lock:
            self._flights.pop(name, None)
        flight.landed.set()

    def _range(self, pack: Digest, first: Placement, last: Placement) -> bytes:
        whole = Placement(pack, first.codec, first.offset, last.offset + last.stored - first.offset, 0)
        stored = self._repository.stored(whole)
        with self._lock:
            self._requests += 1
            self._bytes += len(stored)
        return stored

    def _again(self, place: Placement) -> bytes:
        with self._lock:
            self._damaged += 1
        return self._range(place.pack, place, place)


def _frame_key(name: Digest, place: Placement) -> bytes:
    """What a node's frame is cached by: not by its name, since placements in a frame are those of one stored form."""
    return sha256(b"frame" + name + place.pack + place.offset.to_bytes(8, "little")).digest()
