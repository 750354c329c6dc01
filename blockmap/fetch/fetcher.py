"""Fetches chunks and nodes from the store, once each however many readers wait, and puts them into the cache.

A reader that misses begins a flight for what it needs: one thread asks for that in one small range, while a helper asks for
the neighbours in another. A range is handed over when all of it has come, so that in one range with them the reader would wait
for the neighbours too: starts over 20 to 200 ms took 5 to 12 % longer. The price is two or three requests per miss; if the
neighbours take no time to speak of (a store on a local disk), one range brings all. Whoever wants what is in flight waits for
it. What arrives damaged is fetched again; what does not arrive is tried again as long as the reader's outage policy says
(`origin.outage`), and not waited for any longer, whatever the store does: readers' own threads make no requests. What nobody
waits for is fetched by a few threads, while the link has room for it (`origin.ranges`).
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from blockmap.cache.cache import Cache
from blockmap.cache.staging import StagingArea
from blockmap.cache.verifier import Verifier
from blockmap.errors import BlockmapError, Corrupt, FormatError, NotFound, StoreUnavailable
from blockmap.fetch.flights import Flight, Flights
from blockmap.fetch.prefetch_buffer import PrefetchBuffer
from blockmap.fetch.prefetcher import Prefetcher
from blockmap.format import node as nodes
from blockmap.format.digest import Digest
from blockmap.format.node import Node
from blockmap.format.placement import Placement
from blockmap.format.tree import Root
from blockmap.format.version import NodeRun
from blockmap.origin.link import MAX_WINDOW_BYTES
from blockmap.origin.outage import Attempt
from blockmap.origin.ranges import Ranges
from blockmap.store.concurrent import each, spawn
from blockmap.store.crew import Crew
from blockmap.store.pack_logs import MovedLogs
from blockmap.store.packs import NodeRef, Packs
from blockmap.store.plan import MAX_REQUEST_BYTES, Request, Wanted, node_at, requests
from blockmap.store.walk import Spot, visit

_log = logging.getLogger(__name__)

_FRESH_ATTEMPTS = 3
"""Requests for a chunk that arrived damaged, after the first."""
_NEIGHBOUR_THREADS = 4
_WANT_THREADS = 4
_DEMAND_THREADS = 16
"""Threads for further ranges of one read."""
_LEAD_THREADS = 128
"""Threads for the first ranges of reads: 64 that readers wait for, and as many that a store does not finish, and that nobody
waits for any more."""
_DECODER_THREADS = 2
_MAX_QUEUED = 16
"""Requests for neighbours that may wait for a thread; beyond them, misses do without."""
_MAX_WANTED = 4096
"""Calls of `want`, some 4 MB, that may wait while the store does not answer; further ones are dropped."""
_PATROL_S = 0.5
"""Seconds after which a reader that waits for a request sees that the store is away."""
_CLOSE_S = 5.0
"""Seconds in all that requests under way are waited for at the end."""
_PRIME_S = 10.0
"""Seconds that a run of nodes may take: then they are fetched one by one, by whoever reads what is below them."""

Around = Callable[[Wanted, int], list[Wanted]]
"""Returns the items around one in its pack, within a number of bytes on each side."""


class Fetcher:
    """Gets chunks and nodes through the cache; safe to share between threads."""

    def __init__(self, ranges: Ranges, cache: Cache, damaged: Callable[[Wanted], object] = lambda item: None) -> None:
        """`damaged` is given what the store has not got where it should be, once a reader has found that; it never blocks."""
        self.cache = cache
        self.staging = StagingArea(cache)
        self._ranges = ranges
        self._damaged_at = damaged
        moved = MovedLogs(ranges.store)
        self._demanded = Packs(partial(ranges.read, demand=True), moved)
        self._spare = Packs(partial(ranges.read, demand=False), moved)
        self.verifier = Verifier()
        self._prefetched = PrefetchBuffer()
        self._flights = Flights(self._demanded, cache, self.staging, self.verifier, self._prefetched)
        self.prefetcher = Prefetcher(self._spare, ranges, self._flights, self._prefetched)
        self.outage = self._ranges.outage
        # Guards what follows; never held across I/O, nor while another lock is taken.
        self._lock = threading.Lock()
        self._queued = 0  # requests for neighbours that no helper has begun
        self._wanted = 0  # calls of `want` that no helper has begun
        self._failed = 0
        # Apart from each other, so that no reader waits for what is fetched ahead.
        self._neighbours = Crew(_NEIGHBOUR_THREADS, "neighbours")
        self._leaders = Crew(_LEAD_THREADS, "leader")
        self._decoders = Crew(_DECODER_THREADS, "decoders")
        self._demands = Crew(_DEMAND_THREADS, "demands")
        self._wants = Crew(_WANT_THREADS, "wants")
        self._scout = Crew(1, "scout")

    def get(
        self, wanted: Sequence[Wanted], around: Around | None, attempt: Attempt, certain: bool = True
    ) -> bytes | memoryview:
        """Returns the content of the first of `wanted`; the others, which its reader needs next, are asked for as well, and so
        is what `around` returns.

        If it is `certain` that the store itself says where things are, what is not there is damage of the store. Raises
        Corrupt, NotFound, StoreUnavailable.
        """
        own = wanted[0]
        self.outage.begin(attempt)
        while True:
            if not self.is_prefetched(own.key):
                self.outage.check(attempt)
            flight, lead = self._flights.join(own)
            if lead and not self.prefetcher.land(own, flight):
                self._leaders.run(partial(self._lead, flight, wanted, around, certain))
            self._wait(own, flight, attempt)
            if flight.data is not None:
                return flight.data
            if isinstance(flight.error, StoreUnavailable):
                self.outage.failed(attempt, flight.error)
            elif lead and flight.error is not None:
                raise flight.error
            # The leader of a whole range failed: this reader makes an attempt of its own.

    @property
    def is_local(self) -> bool:
        """Returns True if the store is on this host, so that nothing is gained by reading ahead."""
        return self._ranges.store.local

    def is_prefetched(self, key: bytes) -> bool:
        """Returns True if something has come ahead of its reader, unchecked."""
        return key in self._prefetched.held

    def node(self, wanted: Wanted, attempt: Attempt) -> Node:
        """Returns a node, from the cache or the store. Raises Corrupt, NotFound, StoreUnavailable."""
        frame = self.cache.get(wanted.key)
        if frame is not None:
            try:
                return nodes.decode(frame, wanted.place.pack, wanted.name)
            except FormatError as error:
                _log.warning("the cache's copy of node %s is dropped: %s", wanted.name.hex(), error)
                self.cache.discard(self.cache.lookup(wanted.key))
        return self._node(wanted, attempt, certain=False)

    def stored_node(self, wanted: Wanted, attempt: Attempt) -> Node:
        """Returns a node from the store, whatever the cache has in its place. Raises Corrupt, NotFound, StoreUnavailable."""
        self.cache.discard(self.cache.lookup(wanted.key))
        return self._node(wanted, attempt, certain=True)

    def _node(self, wanted: Wanted, attempt: Attempt, certain: bool) -> Node:
        frame = bytes(self.get([wanted], None, attempt, certain))
        return nodes.decode(frame, wanted.place.pack, wanted.name)

    def want(self, find: Callable[[], Sequence[Wanted]]) -> None:
        """Fetches what `find`, called in the background, returns, but for what is at hand or in flight. Never
        blocks or raises."""

        def fetch() -> None:
            with self._lock:
                self._wanted -= 1
            try:
                items = find()
            except Exception as error:
                _log.info("something that was wanted for later is not fetched: %s", error)
                return
            for request in requests(self._flights.missing(items), MAX_REQUEST_BYTES):
                self._wants.run(partial(self._fetch_when_idle, request))

        with self._lock:
            if self._wanted >= _MAX_WANTED:
                return
            self._wanted += 1
        self._wants.run(fetch)

    def later(self, act: Callable[[], object]) -> None:
        """Calls `act` in the background, after those of earlier calls. Never blocks or raises."""

        def quietly() -> None:
            try:
                act()
            except Exception as error:
                _log.info("a task in the background failed: %s", error)

        self._scout.run(quietly)

    def fetch_now(self, items: Sequence[Wanted]) -> None:
        """Reads ahead in the calling thread, while the link has room; never raises."""
        for request in requests(self._flights.missing(items), MAX_REQUEST_BYTES):
            self._fetch_when_idle(request)

    def complete(self, items: Sequence[Wanted]) -> int:
        """Fetches what the cache lacks, in whole or in part, while the link has room; returns the bytes asked for."""
        came = 0
        for request in requests(self._flights.incomplete(items), MAX_REQUEST_BYTES):
            self._ranges.await_headroom()
            came += request[-1].end - request[0].place.offset
            self._fetch(request, complete=True)
        return came

    @property
    def bytes_per_s(self) -> float:
        """Returns the rate of the link to the store."""
        return self._ranges.bytes_per_s

    @property
    def spare_bytes(self) -> int:
        """Returns the bytes that the link carries in a round trip beside those that a miss brings along, 0 until measured."""
        return self._ranges.spare_bytes

    def ping(self) -> None:
        """Asks the store for one byte. Raises StoreUnavailable."""
        self._ranges.ping()

    def has_node(self, name: Digest, place: Placement | None) -> bool:
        """Returns True if the cache has a node, unchecked."""
        return place is not None and self.cache.lookup(node_at(name, place).key) >= 0

    def prime(self, run: NodeRun, root: Callable[[], Root]) -> None:
        """Reads a run in one range, and caches the nodes of a tree that it holds; `root` returns the root when it is known.

        A node that the run lacks, or that is damaged in it, is fetched when it is needed. Raises what reading the range
        raises.
        """
        try:
            stored = spawn(lambda: self._demanded.run(run)).result(_PRIME_S)
        except TimeoutError:
            raise StoreUnavailable(f"{run.end - run.start} bytes did not come within {_PRIME_S:g} s") from None
        held = Packs(lambda _, start, end: stored[start - run.start : end - run.start])

        def within(level: int, row: list[Spot]) -> list[Spot]:
            return [spot for spot in row if (place := spot.ref[1]) is not None and run.has(place)]

        def load(refs: Sequence[NodeRef]) -> list[Node | BlockmapError]:
            return held.nodes(refs, lambda item, frame: self.cache.put(item.key, frame))

        for _, found in visit(root(), load, within):
            if isinstance(found, BlockmapError):
                _log.warning("%s; it will be fetched again when it is needed", found)

    def flush(self) -> None:
        """Waits until all that has come is in the cache."""
        self._flights.flush()
        self.staging.flush()

    def status(self) -> dict[str, int]:
        """Returns counters, for people and machines."""
        with self._lock:
            failed = self._failed
        return {"failed_reads": failed} | self._flights.status() | self.prefetcher.status() | self._ranges.status()

    def stop(self) -> None:
        """Ends all waiting for the store, with StoreUnavailable."""
        self._ranges.stop()

    def close(self) -> None:
        """Ends the threads, once no reader is left, and no bundle is under way."""
        self.stop()
        self.staging.close()
        end = time.monotonic() + _CLOSE_S
        self.prefetcher.close(_CLOSE_S)
        for crew in (self._scout, self._wants, self._neighbours, self._demands, self._leaders, self._decoders):
            crew.close(max(end - time.monotonic(), 0.0))
        self._flights.close()

    # --- a reader's flight

    def _wait(self, own: Wanted, flight: Flight, attempt: Attempt) -> None:
        """Waits until a flight has ended, which it has when nobody waits for it any longer."""
        while not flight.landed.wait(min(_PATROL_S, self.outage.left_s(attempt))):
            self.outage.check(attempt)
            if not self.outage.left_s(attempt):
                self._flights.fail(own, flight, self.outage.overdue(attempt))

    def _lead(self, flight: Flight, wanted: Sequence[Wanted], around: Around | None, certain: bool) -> None:
        """Ends the flight for the first of `wanted`, with data or with an error."""
        own = wanted[0]
        if flight.landed.is_set():  # nobody waits for it any more
            return
        try:
            data = None if certain and own.is_node else self.cache.get(own.key)
            if data is not None:  # it landed just before
                self._flights.finish_cached(own, flight, data)
                return
            try:
                self._fly(flight, wanted, around)
            except (Corrupt, NotFound) as error:
                lost = [own]
                moved = self._demanded.elsewhere(own, lost.append)
                if moved is None:
                    for item in lost if certain else ():
                        self._damaged_at(item)
                    raise
                _log.warning("%s; it was stored again, and is read there", error)
                self._flights.deliver(own, flight, moved)
        except BaseException as error:
            self._flights.fail(own, flight, error)
            with self._lock:
                self._failed += 1

    def _fly(self, flight: Flight, wanted: Sequence[Wanted], around: Around | None) -> None:
        own = wanted[0]
        request = [own]
        for part in requests([own, *self._flights.missing(wanted[1:])], MAX_REQUEST_BYTES):
            if own in part:
                request = part
            else:
                self._demands.run(partial(self._fetch, part, demand=True))
        request = self._with_neighbours(own, request, around)
        followers = self._flights.begin_missing(request, complete=True)
        try:
            stored, start = self._first_range(own, request)
            data = self._open(own, stored[own.place.offset - start :][: own.place.stored])
        except BaseException as error:
            for item, other in followers:
                self._flights.fail(item, other, error)
            raise
        self._flights.deliver(own, flight, data)
        needed = set(wanted)
        self._flights.land([pair for pair in followers if pair[0] in needed], stored, start)
        rest = [pair for pair in followers if pair[0] not in needed]
        if rest:
            self._decoders.run(partial(self._flights.land, rest, stored, start))

    def _with_neighbours(self, own: Wanted, request: Request, around: Around | None) -> Request:
        """Returns the range to ask for, with the neighbours if they take no time; else has a helper ask for these."""
        allowance = self._ranges.allowance()
        with self._lock:
            busy = self._queued >= _MAX_QUEUED
        if around is None or allowance is None or busy or not self.cache.can_write:
            return request
        window, instant = allowance
        near = self._flights.incomplete(around(own, window // 2))
        near = [item for item in near if item.key not in self._prefetched.expected]
        if not near or not instant:
            self._submit_neighbours([item for item in near if item not in request])
            return request
        items = {item.key: item for item in (*request, *near)}
        return next(part for part in requests(items.values(), 2 * window) if own in part)

    def _submit_neighbours(self, near: list[Wanted]) -> None:
        """Hands requests for neighbours to helpers, which send them right after the reader's own."""
        for request in requests(near, MAX_WINDOW_BYTES):
            with self._lock:
                self._queued += 1
            self._neighbours.run(partial(self._fetch_neighbours, request))

    def _fetch_neighbours(self, request: Request) -> None:
        with self._lock:
            self._queued -= 1
        if self._ranges.has_headroom:
            self._fetch(request, complete=True)

    def _first_range(self, own: Wanted, request: Request) -> tuple[memoryview, int]:
        """Returns the bytes of a range, or only those of its own part if the whole cannot be read, and where they begin."""
        try:
            return self._demanded.stored(request), request[0].place.offset
        except (Corrupt, NotFound) as error:
            if len(request) == 1:
                raise
            _log.warning("%s; chunk %s is fetched alone", error, own.name.hex())
            return self._demanded.stored([own]), own.place.offset

    def _open(self, item: Wanted, stored: memoryview) -> bytes | memoryview:
        """Returns the content of what a reader waits for, fetched again if it is damaged. Raises Corrupt, StoreUnavailable."""
        for attempt in range(_FRESH_ATTEMPTS + 1):
            try:
                return self._flights.open(item, stored)
            except Corrupt as error:
                if attempt == _FRESH_ATTEMPTS:
                    raise
                _log.warning("%s; fetched again", error)
            stored = self._demanded.stored([item])
        raise AssertionError

    # --- reads ahead

    def _fetch(self, request: Request, demand: bool = False, complete: bool = False) -> None:
        """Fetches what is neither at hand nor in flight; never raises, nor waits for what others fetch."""
        if self.outage.away or not (demand or self.cache.can_write):
            return
        flights = self._flights.begin_missing(request, complete)
        if not flights:
            return
        items = [item for item, _ in flights]
        packs = self._demanded if demand else self._spare
        try:
            stored = packs.stored(items)
        except (Corrupt, NotFound):  # some of it may be elsewhere, and some in its place
            each(lambda found: self._fetch_alone(packs, *found), flights)
        except Exception as error:
            _log.info("prefetch of %s failed: %s", items[0].name.hex(), error)
            for item, flight in flights:
                self._flights.fail(item, flight, error)
        else:
            self._flights.land(flights, stored, items[0].place.offset, packs.elsewhere)

    def _fetch_alone(self, packs: Packs, item: Wanted, flight: Flight) -> None:
        """Fetches one thing, from where it was stored again if it is not in its place; never raises."""
        try:
            try:
                data = self._flights.open(item, packs.stored([item]))
            except (Corrupt, NotFound):
                moved = packs.elsewhere(item)
                if moved is None:
                    raise
                data = moved
        except Exception as error:
            _log.info("prefetch of %s failed: %s", item.name.hex(), error)
            self._flights.fail(item, flight, error)
        else:
            self._flights.deliver(item, flight, data)

    def _fetch_when_idle(self, request: Request) -> None:
        self._ranges.await_headroom()
        self._fetch(request)
