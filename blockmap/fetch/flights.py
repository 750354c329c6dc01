"""What is on its way to the cache: one flight for each thing, however many wait for it.

Many threads bring things at once, and every change of the interpreter's lock between them costs the time of a hundred of
its instructions or more. So one at a time verifies, holding it, while the others wait for a lock that costs nothing; and
one thread writes to the cache what the others' readers have long got.
"""

import logging
import queue
import threading
from collections.abc import Sequence

from blockmap.cache.cache import Cache
from blockmap.cache.staging import StagingArea
from blockmap.errors import Corrupt
from blockmap.store.packs import Packs
from blockmap.store.plan import Request, Wanted

_log = logging.getLogger(__name__)

_MAX_LANDED = 128
"""What waits to be written to the cache, some 8 MB; whoever brings more writes it."""


_Landed = tuple[Wanted, bytes | memoryview]


class Flight:
    """Something on its way; `data` is set before `landed`, or `error` where it failed."""

    __slots__ = ("data", "error", "landed")

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.data: bytes | memoryview | None = None
        self.error: BaseException | None = None


class Flights:
    """All flights to one cache; safe to share between threads."""

    def __init__(self, packs: Packs, cache: Cache, landing: StagingArea) -> None:
        self._packs, self._cache, self._landing = packs, cache, landing
        # Guards what follows; never held across I/O, nor while another lock is taken. `missing` looks without it.
        self._lock = threading.Lock()
        self._by_key: dict[bytes, Flight] = {}
        self._opened = self._damaged = 0
        self.verifying = threading.Lock()  # no other is taken while it is held
        self._landed: queue.SimpleQueue[_Landed | threading.Event | None] = queue.SimpleQueue()
        self._keeper = threading.Thread(target=self._keep_landed, name="keeper", daemon=True)
        self._keeper.start()

    def join(self, item: Wanted) -> tuple[Flight, bool]:
        """The flight for something, and whether it is a new one, which the caller is to lead."""
        with self._lock:
            flight = self._by_key.get(item.key)
            lead = flight is None
            if flight is None:
                flight = self._by_key[item.key] = Flight()
        return flight, lead

    def missing(self, items: Sequence[Wanted]) -> list[Wanted]:
        """What is neither at hand, if only in part, nor in flight."""
        at_hand, flights = self._landing.has_any, self._by_key
        return [item for item in items if not at_hand(item.key) and item.key not in flights]

    def incomplete(self, items: Sequence[Wanted]) -> list[Wanted]:
        """What is neither at hand as a whole nor in flight."""
        at_hand, flights = self._landing.has_all, self._by_key
        return [item for item in items if not at_hand(item.key) and item.key not in flights]

    def begin_missing(self, request: Request, complete: bool = False) -> list[tuple[Wanted, Flight]]:
        """New flights for what is not in flight, nor at hand: if only in part, or as a whole."""
        at_hand = self._landing.has_all if complete else self._landing.has_any
        found = []
        with self._lock:
            for item in request:
                if item.key not in self._by_key and not at_hand(item.key):
                    flight = self._by_key[item.key] = Flight()
                    found.append((item, flight))
        return found

    def open(self, item: Wanted, stored: memoryview) -> bytes | memoryview:
        """The content of a chunk, or the frame of a node; Corrupt."""
        try:
            with self.verifying:
                if item.is_node:
                    return self._packs.open_node(item.name, item.place, stored)[1]
                return self._packs.open_chunk(item.name, item.place, stored)
        except Corrupt:
            with self._lock:
                self._damaged += 1
            raise

    def land(self, flights: Sequence[tuple[Wanted, Flight]], stored: memoryview, start: int) -> None:
        """Ends flights out of a range of their pack that begins at `start`; never raises."""
        for item, flight in flights:
            at = item.place.offset - start
            try:
                data = self.open(item, stored[at : at + item.place.stored])
            except Exception as error:
                _log.warning("%s; it will be fetched again when it is read", error)
                self.fail(item, flight, error)
            else:
                self.deliver(item, flight, data)

    def deliver(self, item: Wanted, flight: Flight, data: bytes | memoryview) -> None:
        """Hands content to those who wait, then to the cache; it stays in flight until the cache has it."""
        flight.data = data
        flight.landed.set()
        if self._landed.qsize() < _MAX_LANDED:
            self._landed.put((item, data))
        else:
            self._keep(item, data)

    def cancel(self, item: Wanted, flight: Flight, data: bytes) -> None:
        """Ends a flight for what the cache has already."""
        flight.data = data
        with self._lock:
            self._by_key.pop(item.key, None)
        flight.landed.set()

    def fail(self, item: Wanted, flight: Flight, error: BaseException) -> None:
        """Tells those who wait that nothing comes."""
        flight.error = error
        with self._lock:
            self._by_key.pop(item.key, None)
        flight.landed.set()

    def flush(self) -> None:
        """Waits until the cache has been given what was delivered."""
        done = threading.Event()
        self._landed.put(done)
        done.wait()

    def close(self) -> None:
        """Nothing may be delivered any more."""
        self._landed.put(None)
        self._keeper.join()

    def status(self) -> dict[str, int]:
        with self._lock:
            return {"chunks": self._opened, "damaged": self._damaged}

    def _keep_landed(self) -> None:
        while (landed := self._landed.get()) is not None:
            if isinstance(landed, threading.Event):
                landed.set()
            else:
                self._keep(*landed)

    def _keep(self, item: Wanted, data: bytes | memoryview) -> None:
        try:
            self._cache.put(item.key, data)
        except Exception as error:
            _log.warning("%s is not kept in the cache: %s", item.name.hex(), error)
        finally:
            with self._lock:
                self._by_key.pop(item.key, None)
                self._opened += 1
