"""Prefetches chunks that nobody waits for, as far as the link has bytes to spare, and decodes them when there is time.

What is under way is held against the link's spare bytes, so that a miss meanwhile finds room on it. A reader that needs a
chunk which has come decodes it in its own thread. One that needs a chunk still under way asks for it all the same, as its own
small range may come before the large one; whichever comes first serves it.
"""

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial

from blockmap.errors import Corrupt
from blockmap.fetch.flights import Flight, Flights
from blockmap.fetch.prefetch_buffer import PrefetchBuffer
from blockmap.origin.ranges import Ranges
from blockmap.store.crew import Crew
from blockmap.store.packs import Packs
from blockmap.store.plan import MAX_REQUEST_BYTES, Request, Wanted, requests

_log = logging.getLogger(__name__)

_REQUESTS = 16
"""Requests under way at once: as many as connections are kept open."""
_MIN_REQUEST_BYTES = 128 << 10
_PARTS = 4
"""Requests that share the link's spare bytes: fewer would leave it idle between two of them, and more are too short for its rate
to be measured by."""
_MOST_BYTES = 128 << 20
"""Bytes that are held or under way, at most."""
_FULL_BYTES = 96 << 20
"""Bytes held from which on the oldest are decoded at once."""
_QUIET_S = 1.0
"""Seconds in which nothing came, and none of it was read, after which there is time to decode it."""
_LONGEST_S = 10.0
"""Seconds after which all is decoded, however much is read."""


class Prefetcher:
    """Fetches ahead for all volumes of a server; safe to share between threads."""

    def __init__(self, packs: Packs, ranges: Ranges, flights: Flights, buffer: PrefetchBuffer) -> None:
        self._packs, self._ranges, self._flights, self._buffer = packs, ranges, flights, buffer
        self._crew = Crew(_REQUESTS, "prefetch")
        self._changed = threading.Condition()  # guards what follows; never held across I/O
        self._under_way_bytes = 0
        self._bytes = self._reads = 0
        self._decoding: threading.Thread | None = None
        self._touched_at = 0.0
        """When something came or was read. It is set without the lock."""
        self._closed = threading.Event()

    def bring(self, items: Sequence[Wanted]) -> int:
        """Asks for those of `items` that are neither at hand nor under way, as the link has room; waits until the last request
        can be made, and returns the bytes asked for. It asks for nothing while the store is away."""
        buffer = self._buffer
        wanted = [item for item in self._flights.incomplete(items) if item.key not in buffer.expected]
        limit = max(self._ranges.spare_bytes // _PARTS, _MIN_REQUEST_BYTES)
        asked = 0
        for request in requests(wanted, min(limit, MAX_REQUEST_BYTES)):
            size = request[-1].end - request[0].place.offset
            self._ranges.await_headroom()
            spare = self._ranges.spare_bytes
            with self._changed:
                self._changed.wait_for(partial(self._has_room, size, spare))
            if self._closed.is_set() or self._ranges.outage.away:
                break
            buffer.expect(request)
            with self._changed:
                self._under_way_bytes += size
            self._crew.run(partial(self._fetch, request, size))
            asked += size
        return asked

    def land(self, own: Wanted, flight: Flight) -> bool:
        """Ends a reader's flight with what has come; returns False if that is not held, or damaged."""
        stored = self._buffer.take(own.key)
        if stored is None:
            return False
        self._touched_at = time.monotonic()
        try:
            data = self._flights.open(own, memoryview(stored))
        except Corrupt as error:
            _log.warning("%s; fetched again", error)
            return False
        self._flights.deliver(own, flight, data)
        with self._changed:
            self._reads += 1
            self._changed.notify_all()
        return True

    @property
    def under_way_bytes(self) -> int:
        """Returns the bytes that were asked for and have not come."""
        return self._under_way_bytes

    def status(self) -> dict[str, int]:
        """Returns counters, for people and machines."""
        with self._changed:
            return {"hydrated_bytes": self._bytes, "hydrated_reads": self._reads}

    def close(self, seconds: float) -> None:
        """Ends the threads; what is not decoded is dropped."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
            decoding = self._decoding
        self._crew.close(seconds)
        if decoding is not None:
            decoding.join()

    def _has_room(self, size: int, spare_bytes: int) -> bool:
        """Returns True if a request may be made, or none will be any more; called with the lock."""
        if self._closed.is_set() or self._ranges.outage.away:
            return True
        under_way = self._under_way_bytes
        fits = not under_way or under_way + size <= spare_bytes
        return fits and self._buffer.size + under_way + size <= _MOST_BYTES

    def _fetch(self, request: Request, size: int) -> None:
        stored = None
        try:
            stored = self._packs.stored(request)
        except Exception as error:
            _log.info("prefetch of %s failed: %s", request[0].name.hex(), error)
        self._buffer.put(request, stored)
        with self._changed:
            self._under_way_bytes -= size
            self._bytes += size if stored is not None else 0
            self._changed.notify_all()
            begin = self._decoding is None and stored is not None and not self._closed.is_set()
            if begin:
                self._decoding = threading.Thread(target=self._decode_all, name="prefetch decoder", daemon=True)
                self._decoding.start()
        self._touched_at = time.monotonic()
        for item in request:
            flight = self._flights.lookup(item)
            if flight is not None and not flight.landed.is_set():
                self.land(item, flight)

    # --- what nobody reads

    def _decode_all(self) -> None:
        """Verifies what is held and hands it to the cache, when there is time, until the end."""
        while not self._closed.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._buffer.size or self._closed.is_set())
            full = self._await_time()
            while not self._closed.is_set() and (found := self._buffer.take_oldest()) is not None:
                item, stored = found
                flights = self._flights.begin_missing([item], complete=True)
                self._flights.land(flights, memoryview(stored), item.place.offset)
                with self._changed:
                    self._changed.notify_all()
                if full and self._buffer.size < _FULL_BYTES:
                    break

    def _await_time(self) -> bool:
        """Waits until there is time to decode what is held; returns True if there is none, but too much is held."""
        end = time.monotonic() + _LONGEST_S
        while not self._closed.is_set():
            if self._buffer.size >= _FULL_BYTES:
                return True
            now = time.monotonic()
            until = min(self._touched_at + _QUIET_S, end)
            if now >= until:
                break
            with self._changed:
                self._changed.wait(until - now)
        return False
