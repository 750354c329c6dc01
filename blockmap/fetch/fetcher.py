"""Brings chunks and nodes from the store, once each however many wait, and keeps them in the cache.

A reader that misses leads a flight for what it needs: it asks for that in one small range, and a helper at once for the
neighbours in another. obstore hands a range over when all of it is there, so in one range with them the reader would wait
for the neighbours too: of starts over 20 to 200 ms, that took 5 to 12 % longer. It costs requests, two or three per miss
instead of one; where the neighbours take no time to speak of (a store on a local disk), one range brings all. Whoever wants
what is in flight waits for it. What arrives damaged is fetched again, and what does not arrive is tried again as long as
its reader has patience (`line`).

Demand comes first: what nobody waits for is asked for by a few threads, and not while readers have more under way than the
link holds.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from blockmap.errors import Corrupt, FormatError, NotFound, StoreUnavailable
from blockmap.fetch.cache import Cache
from blockmap.fetch.line import Line, Trial
from blockmap.fetch.link import MAX_WINDOW_BYTES, Link
from blockmap.fetch.patience import Patience
from blockmap.fetch.plan import MAX_REQUEST_BYTES, Request, Wanted, node_at, requests
from blockmap.format import keys
from blockmap.format import node as nodes
from blockmap.format.digest import Digest
from blockmap.format.node import Inner, Node, Placement
from blockmap.format.tree import Root
from blockmap.format.version import Run
from blockmap.store.repository import Repository, open_chunk, open_node

_log = logging.getLogger(__name__)

_FRESH_ATTEMPTS = 3
"""For what arrives damaged, after the first."""
_NEIGHBOUR_THREADS = 4
_WANT_THREADS = 4
_DEMAND_THREADS = 16
"""For further ranges of one read: reader threads do the rest."""
_MAX_QUEUED = 16
_PATROL_S = 0.5
"""How soon a reader that waits for another's request sees that its patience is at an end."""
_WORTH_SPLITTING_S = 1e-3

Around = Callable[[Wanted, int], list[Wanted]]
"""What lies around something in its pack, within so many bytes on each side."""


class _Flight:
    """Something on its way; `data` is set before `landed`, or `error` where it failed."""

    __slots__ = ("data", "error", "landed")

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.data: bytes | None = None
        self.error: BaseException | None = None


class Fetcher:
    """Chunks and nodes through the cache; safe to share between threads."""

    def __init__(self, repository: Repository, cache: Cache) -> None:
        self.cache = cache
        self.line = Line(self.ping)
        self._repository = repository
        # Guards what follows up to the counters; never held across I/O, nor while another lock is taken.
        self._lock = threading.Lock()
        self._calm = threading.Condition(self._lock)
        self._flights: dict[bytes, _Flight] = {}
        self._link = Link()
        self._demand_bytes = 0  # under way for readers
        self._queued = 0  # neighbours that no helper has begun with
        self._requests = self._opened = self._bytes = self._damaged = self._failed = 0
        # Apart from each other, so that no reader waits for what is wanted for later.
        self._neighbours = ThreadPoolExecutor(_NEIGHBOUR_THREADS, "neighbours")
        self._openers = ThreadPoolExecutor(2, "openers")
        self._demands = ThreadPoolExecutor(_DEMAND_THREADS, "demands")
        self._wants = ThreadPoolExecutor(_WANT_THREADS, "wants")
        self._scout = ThreadPoolExecutor(1, "scout")

    def get(self, wanted: Sequence[Wanted], around: Around, patience: Patience) -> bytes:
        """The content of the first of `wanted`; its reader needs the others next, so they are asked for as well.

        Raises Corrupt, NotFound, StoreUnavailable.
        """
        own, trial = wanted[0], self.line.trial(patience)
        while True:
            self.line.check(trial)
            with self._lock:
                flight = self._flights.get(own.key)
                lead = flight is None
                if flight is None:
                    flight = self._flights[own.key] = _Flight()
            if lead:
                self._lead(flight, wanted, around)
            else:
                self._wait(flight, trial)
            if flight.data is not None:
                return flight.data
            if isinstance(flight.error, StoreUnavailable):
                self.line.failed(trial, flight.error)
            elif lead and flight.error is not None:
                raise flight.error
            # The leader of a whole range failed: this reader's own attempt decides.

    def node(self, wanted: Wanted, patience: Patience) -> Node:
        """A node, from the cache or the store; raises Corrupt, NotFound, StoreUnavailable."""
        frame = self.cache.get(wanted.key)
        if frame is not None:
            try:
                return nodes.decode(frame, wanted.place.pack, wanted.name)
            except FormatError as error:
                _log.warning("the cache's copy of node %s is dropped: %s", wanted.name.hex(), error)
                self.cache.discard(self.cache.lookup(wanted.key))
        frame = self.get([wanted], _nothing, patience)
        return nodes.decode(frame, wanted.place.pack, wanted.name)

    def want(self, items: Sequence[Wanted]) -> None:
        """Brings things in the background; what is at hand or in flight is left out. Never blocks or raises."""
        for request in requests(self._missing(items), MAX_REQUEST_BYTES):
            with suppress(RuntimeError):  # closed
                self._wants.submit(self._bring_calmly, request)

    def later(self, act: Callable[[], object]) -> None:
        """Does something in the background, one after the other. Never blocks or raises."""

        def quietly() -> None:
            try:
                act()
            except Exception as error:
                _log.info("something for later was left undone: %s", error)

        with suppress(RuntimeError):  # closed
            self._scout.submit(quietly)

    def bring(self, items: Sequence[Wanted]) -> None:
        """Brings things that nobody waits for, in the calling thread; never raises."""
        for request in requests(self._missing(items), MAX_REQUEST_BYTES):
            self._bring_calmly(request)

    @property
    def window_bytes(self) -> int:
        """What a miss takes along."""
        with self._lock:
            return self._link.window_bytes

    def ping(self) -> None:
        """Asks the store for next to nothing; StoreUnavailable."""
        start = time.monotonic()
        self._repository.store.get_range(keys.FORMAT, 0, 1)
        with self._lock:
            self._link.note(start, time.monotonic(), 1)
        self.line.answered()

    def has_node(self, name: Digest, place: Placement | None) -> bool:
        """Whether the cache has a node, which is not checked."""
        return place is not None and self.cache.lookup(node_at(name, place).key) >= 0

    def prime(self, run: Run, root: Callable[[], Root]) -> None:
        """Reads a run in one range and keeps the nodes of a tree that it holds; `root` is asked for meanwhile.

        Advice: what is not in it, or damaged, is fetched when it is needed. Raises what reading the range raises.
        """
        stored = self._read(run.pack, run.start, run.end, demand=True)
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
            self.cache.put(node_at(name, place).key, frame)
            if isinstance(node, Inner):
                waiting.extend(zip(node.children, node.placements, strict=True))

    def status(self) -> dict[str, int]:
        with self._lock:
            found = {
                "requests": self._requests,
                "chunks": self._opened,
                "bytes": self._bytes,
                "damaged": self._damaged,
                "failed": self._failed,
                "rtt_us": int(self._link.rtt_s * 1e6),
                "bytes_per_s": int(self._link.bytes_per_s),
            }
        return found | self.line.status()

    def stop(self) -> None:
        """Ends all waiting for the store, with StoreUnavailable."""
        self.line.stop()
        with self._lock:
            self._calm.notify_all()

    def close(self) -> None:
        """Ends the threads, when no reader is left."""
        self.stop()
        for pool in (self._scout, self._wants, self._neighbours, self._demands, self._openers):
            pool.shutdown(wait=True, cancel_futures=pool is not self._openers)

    # --- a reader's flight

    def _wait(self, flight: _Flight, trial: Trial) -> None:
        while not flight.landed.wait(_PATROL_S):
            self.line.check(trial)

    def _lead(self, flight: _Flight, wanted: Sequence[Wanted], around: Around) -> None:
        """Ends the flight for the first of `wanted`, with data or with an error."""
        own = wanted[0]
        try:
            data = self.cache.get(own.key)
            if data is not None:  # it landed just before
                self._deliver(own, flight, data, store=False)
                return
            self._fly(flight, wanted, around)
        except BaseException as error:
            self._fail(own, flight, error)
            with self._lock:
                self._failed += 1

    def _fly(self, flight: _Flight, wanted: Sequence[Wanted], around: Around) -> None:
        own = wanted[0]
        request = [own]
        for each in requests([own, *self._missing(wanted[1:])], MAX_REQUEST_BYTES):
            if own in each:
                request = each
            else:
                with suppress(RuntimeError):  # closed
                    self._demands.submit(self._bring, each, demand=True)
        request = self._with_neighbours(own, request, around)
        followers = self._take_off(request)
        try:
            stored, start = self._first_range(own, request)
            data = self._open(own, stored[own.place.offset - start :][: own.place.stored])
        except BaseException as error:
            for item, other in followers:
                self._fail(item, other, error)
            raise
        self._deliver(own, flight, data)
        needed = set(wanted)
        self._land([each for each in followers if each[0] in needed], stored, start)
        rest = [each for each in followers if each[0] not in needed]
        if rest:
            self._openers.submit(self._land, rest, stored, start)

    def _with_neighbours(self, own: Wanted, request: Request, around: Around) -> Request:
        """The range to ask for, where the neighbours belong in it; else sends a helper for them."""
        with self._lock:
            window = self._link.window_bytes
            instant = window < _WORTH_SPLITTING_S * self._link.bytes_per_s
            if not self._is_calm() or self._queued >= _MAX_QUEUED:
                return request
        near = self._missing(around(own, window // 2))
        if not near or not instant:
            self._send_for([item for item in near if item not in request])
            return request
        items = {item.key: item for item in (*request, *near)}
        return next(each for each in requests(items.values(), 2 * window) if own in each)

    def _send_for(self, near: list[Wanted]) -> None:
        """Before the reader's own request goes out: the helpers' follow it at once."""
        for request in requests(near, MAX_WINDOW_BYTES):
            with self._lock:
                self._queued += 1
            with suppress(RuntimeError):  # closed
                self._neighbours.submit(self._bring_soon, request)

    def _bring_soon(self, request: Request) -> None:
        with self._lock:
            self._queued -= 1
            calm = self._is_calm()
        if calm:
            self._bring(request)

    def _first_range(self, own: Wanted, request: Request) -> tuple[memoryview, int]:
        """What a range holds, or its own part alone where the whole cannot be had; and where that begins."""
        try:
            return self._range(request, demand=True), request[0].place.offset
        except (Corrupt, NotFound) as error:
            if len(request) == 1:
                raise
            _log.warning("%s; chunk %s is fetched alone", error, own.name.hex())
            return self._range([own], demand=True), own.place.offset

    # --- what nobody waits for yet

    def _bring(self, request: Request, demand: bool = False) -> None:
        """Leads flights for what is neither at hand nor in flight; waits for no other's, and never raises."""
        if self.line.away:
            return
        flights = self._take_off(request)
        if not flights:
            return
        items = [item for item, _ in flights]
        try:
            stored = self._range(items, demand)
        except Exception as error:
            _log.info("prefetch of %s failed: %s", items[0].name.hex(), error)
            for item, flight in flights:
                self._fail(item, flight, error)
            return
        self._land(flights, stored, items[0].place.offset)

    def _bring_calmly(self, request: Request) -> None:
        with self._lock:
            self._calm.wait_for(lambda: self.line.away or self._is_calm())
        self._bring(request)

    def _is_calm(self) -> bool:
        """Whether the link has room beside what readers wait for; to be called with the lock."""
        return self._demand_bytes < self._link.window_bytes

    def _missing(self, items: Sequence[Wanted]) -> list[Wanted]:
        lookup, flights = self.cache.lookup, self._flights
        return [item for item in items if lookup(item.key) < 0 and item.key not in flights]

    def _take_off(self, request: Request) -> list[tuple[Wanted, _Flight]]:
        """New flights for what is neither at hand nor in flight."""
        found = []
        with self._lock:
            for item in request:
                if item.key not in self._flights and self.cache.lookup(item.key) < 0:
                    flight = self._flights[item.key] = _Flight()
                    found.append((item, flight))
        return found

    # --- landing

    def _land(self, flights: list[tuple[Wanted, _Flight]], stored: memoryview, start: int) -> None:
        for item, flight in flights:
            at = item.place.offset - start
            try:
                data = _opened(item, stored[at : at + item.place.stored])
            except Exception as error:
                _log.warning("%s; it will be fetched again when it is read", error)
                with self._lock:
                    self._damaged += 1
                self._fail(item, flight, error)
            else:
                self._deliver(item, flight, data)

    def _open(self, item: Wanted, stored: memoryview) -> bytes:
        """The content of what a reader waits for, fetched again where it is damaged; Corrupt, StoreUnavailable."""
        for attempt in range(_FRESH_ATTEMPTS + 1):
            try:
                return _opened(item, stored)
            except Corrupt as error:
                with self._lock:
                    self._damaged += 1
                if attempt == _FRESH_ATTEMPTS:
                    raise
                _log.warning("%s; fetched again", error)
            stored = self._range([item], demand=True)
        raise AssertionError

    def _deliver(self, item: Wanted, flight: _Flight, data: bytes, store: bool = True) -> None:
        """Hands content to those who wait, then to the cache; it stays in flight until the cache has it."""
        flight.data = data
        flight.landed.set()
        try:
            if store:
                self.cache.put(item.key, data)
        except Exception as error:
            _log.warning("%s is not kept in the cache: %s", item.name.hex(), error)
        finally:
            with self._lock:
                self._flights.pop(item.key, None)
                self._opened += store

    def _fail(self, item: Wanted, flight: _Flight, error: BaseException) -> None:
        flight.error = error
        with self._lock:
            self._flights.pop(item.key, None)
        flight.landed.set()

    def _range(self, request: Request, demand: bool) -> memoryview:
        """The bytes from the first of a request to the last; Corrupt, NotFound, StoreUnavailable."""
        first = request[0].place
        return self._read(first.pack, first.offset, request[-1].end, demand)

    def _read(self, pack: Digest, start: int, end: int, demand: bool) -> memoryview:
        """The bytes [start, end) of a pack; Corrupt, NotFound, StoreUnavailable."""
        count = end - start
        began = time.monotonic()
        with self._lock:
            self._requests += 1
            self._demand_bytes += count * demand
        try:
            stored = self._repository.store.get_range(keys.pack(pack), start, end)
        finally:
            with self._lock:
                if demand:
                    self._demand_bytes -= count
                    self._calm.notify_all()
        with self._lock:
            self._bytes += count
            self._link.note(began, time.monotonic(), count)
        self.line.answered()
        return memoryview(stored)


def _opened(item: Wanted, stored: memoryview) -> bytes:
    """The content of a chunk, or the frame of a node; Corrupt."""
    if item.is_node:
        return open_node(item.name, item.place, stored)[1]
    return open_chunk(item.name, item.place, stored)


def _nothing(own: Wanted, each_bytes: int) -> list[Wanted]:
    return []
