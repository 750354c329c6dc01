"""Keeps one flight for each chunk or node that is fetched, however many readers wait for it (single flight).

Readers get the content as soon as it is verified; one thread writes it to the cache afterwards.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from blockmap.cache.cache import Cache
from blockmap.cache.staging import StagingArea
from blockmap.cache.verifier import Verifier
from blockmap.errors import Corrupt
from blockmap.fetch.prefetch_buffer import PrefetchBuffer
from blockmap.store.packs import Packs
from blockmap.store.plan import Request, Wanted

_log = logging.getLogger(__name__)

_MAX_LANDED = 128
"""Chunks that wait to be written to the cache, some 8 MB; the thread that delivers one more writes it itself."""

_Landed = tuple[Wanted, "Flight", bytes | memoryview]


class Flight:
    """The fetching of one chunk or node; `data`, or `error` where that failed, is set before `landed`."""

    __slots__ = ("data", "error", "landed")

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.data: bytes | memoryview | None = None
        self.error: BaseException | None = None


class Flights:
    """The flights of one cache; safe to share between threads."""

    def __init__(
        self, packs: Packs, cache: Cache, staging: StagingArea, verifier: Verifier, prefetched: PrefetchBuffer
    ) -> None:
        self._packs, self._cache, self._staging, self._verifier = packs, cache, staging, verifier
        self._prefetched = prefetched.held
        # Guards what follows; never held across I/O, nor while another lock is taken. `missing` looks without it.
        self._lock = threading.Lock()
        self._by_key: dict[bytes, Flight] = {}
        self._written = self._damaged = self._joined = 0
        self._landed: queue.SimpleQueue[_Landed | threading.Event | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_landed, name="cache writer", daemon=True)
        self._writer.start()

    def join(self, item: Wanted) -> tuple[Flight, bool]:
        """Returns the flight for something, and True if it is a new one, which the caller has to lead."""
        with self._lock:
            flight = self._by_key.get(item.key)
            lead = flight is None
            if flight is None:
                flight = self._by_key[item.key] = Flight()
            self._joined += not lead
        return flight, lead

    def lookup(self, item: Wanted) -> Flight | None:
        """Returns the flight for something, if there is one."""
        return self._by_key.get(item.key)

    def missing(self, items: Sequence[Wanted]) -> list[Wanted]:
        """Returns those of `items` that are not in flight, and of which no part is at hand."""
        at_hand, flights, prefetched = self._staging.has_any, self._by_key, self._prefetched
        return [
            item for item in items if not at_hand(item.key) and item.key not in flights and item.key not in prefetched
        ]

    def incomplete(self, items: Sequence[Wanted]) -> list[Wanted]:
        """Returns those of `items` that are not in flight, and not at hand as a whole."""
        at_hand, flights, prefetched = self._staging.has_all, self._by_key, self._prefetched
        return [
            item for item in items if not at_hand(item.key) and item.key not in flights and item.key not in prefetched
        ]

    def begin_missing(self, request: Request, complete: bool = False) -> list[tuple[Wanted, Flight]]:
        """Begins flights for those items that are missing, or with `complete` for those that are incomplete; returns them."""
        at_hand = self._staging.has_all if complete else self._staging.has_any
        found = []
        with self._lock:
            for item in request:
                if item.key not in self._by_key and item.key not in self._prefetched and not at_hand(item.key):
                    flight = self._by_key[item.key] = Flight()
                    found.append((item, flight))
        return found

    def open(self, item: Wanted, stored: memoryview) -> bytes | memoryview:
        """Returns the content of a chunk, or the frame of a node, verified. Raises Corrupt."""
        try:
            if item.is_node:
                return self._verifier.run(self._packs.open_node, item.name, item.place, stored)[1]
            return self._verifier.run(self._packs.open_chunk, item.name, item.place, stored)
        except Corrupt:
            with self._lock:
                self._damaged += 1
            raise

    def land(
        self,
        flights: Sequence[tuple[Wanted, Flight]],
        stored: memoryview,
        start: int,
        otherwise: Callable[[Wanted], bytes | None] = lambda item: None,
    ) -> None:
        """Ends flights with the bytes of a range of their pack, which begins at `start`; never raises.

        What is damaged there is as `otherwise` returns it, if not None.
        """
        for item, flight in flights:
            at = item.place.offset - start
            try:
                try:
                    data = self.open(item, stored[at : at + item.place.stored])
                except Corrupt:
                    moved = otherwise(item)
                    if moved is None:
                        raise
                    data = moved
            except Exception as error:
                _log.warning("%s; it will be fetched again when it is read", error)
                self.fail(item, flight, error)
            else:
                self.deliver(item, flight, data)

    def deliver(self, item: Wanted, flight: Flight, data: bytes | memoryview) -> None:
        """Ends a flight with its content, which stays in flight until the cache has it; does nothing if it has content."""
        if flight.data is not None:
            return
        flight.data = data
        flight.landed.set()
        if self._landed.qsize() < _MAX_LANDED:
            self._landed.put((item, flight, data))
        else:
            self._write(item, flight, data)

    def finish_cached(self, item: Wanted, flight: Flight, data: bytes) -> None:
        """Ends a flight with content that the cache turned out to have."""
        flight.data = data
        self._end(item, flight)
        flight.landed.set()

    def fail(self, item: Wanted, flight: Flight, error: BaseException) -> None:
        """Ends a flight with an error; what it brings later is kept all the same, though another may be under way by then."""
        flight.error = error
        self._end(item, flight)
        flight.landed.set()

    def flush(self) -> None:
        """Waits until all that was delivered is in the cache."""
        done = threading.Event()
        self._landed.put(done)
        done.wait()

    def close(self) -> None:
        """Ends the thread when all is written; nothing may be delivered any more."""
        self._landed.put(None)
        self._writer.join()

    def status(self) -> dict[str, int]:
        """Returns counters, for people and machines."""
        with self._lock:
            return {
                "chunks": self._written,
                "damaged": self._damaged,
                "in_flight": len(self._by_key),
                "joined_reads": self._joined,
            }

    def _write_landed(self) -> None:
        while (landed := self._landed.get()) is not None:
            if isinstance(landed, threading.Event):
                landed.set()
            else:
                self._write(*landed)

    def _write(self, item: Wanted, flight: Flight, data: bytes | memoryview) -> None:
        try:
            self._cache.put(item.key, data)
        except Exception as error:
            _log.warning("%s cannot be written to the cache: %s", item.name.hex(), error)
        finally:
            self._end(item, flight)
            with self._lock:
                self._written += 1

    def _end(self, item: Wanted, flight: Flight) -> None:
        with self._lock:
            if self._by_key.get(item.key) is flight:
                del self._by_key[item.key]
