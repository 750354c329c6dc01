"""Pins what is open in the store, so that no collection takes it while a device reads it, whatever its names stand for.

One pin for each version and server, made a while after the version was opened, by a thread that no reader waits for; made anew
each day, by the store's clock, and deleted when the last connection has closed. Those of a host that died expire (`store.pins`).
"""

import logging
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

from blockmap.errors import StoreError, StoreReadOnly
from blockmap.format.digest import Digest
from blockmap.store.base import Pruner
from blockmap.store.collections import store_time
from blockmap.store.pins import hold_version, open_holder, pin_day, unpin_version

_log = logging.getLogger(__name__)

_DELAY_S = 5.0
"""Seconds from an open to its pin: a start has the link for itself, and who only looks around leaves none."""
_PATROL_S = 60.0
"""Seconds after which what could not be done is tried again, and the day is looked at: waiting does not count a host's sleep."""
_REFRESH_S = 6 * 3600.0
"""Seconds after which the store is asked which day it is; a pin counts for a day at least."""
_CLOSE_SECONDS = 1.0


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class OpenPins:
    """Keeps the versions that are open pinned; safe to share between threads."""

    def __init__(self, store: Pruner | None, clock: Callable[[], float] = _boot_time) -> None:
        """Without a store that can be written, nothing is pinned. `clock` gives seconds, and goes on while the host sleeps."""
        self._store = store
        self._clock = clock
        self._server = f"{socket.gethostname().replace('/', '~')}-{secrets.token_hex(4)}"
        self._asked = float("-inf")
        """When the store was last asked which day it is; the thread's, as what follows."""
        self._day = 0
        self._pinned: dict[Digest, int] = {}
        """The day of each version's pin."""
        self._lock = threading.Lock()  # guards what follows; never held across I/O, nor while another lock is taken
        self._changed = threading.Condition(self._lock)
        self._held: Counter[Digest] = Counter()
        """How many connections have each version open."""
        self._is_changed = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def hold(self, version: Digest) -> None:
        """Has a version pinned soon; `release` must follow."""
        with self._lock:
            self._held[version] += 1
            if self._store is None or self._closed:
                return
            if self._held[version] == 1:
                self._is_changed = True
                self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="pins", daemon=True)
                self._thread.start()

    def release(self, version: Digest) -> None:
        """Has a version's pin deleted soon, if this was the last connection."""
        with self._lock:
            self._held[version] -= 1
            if not self._held[version]:
                del self._held[version]
                self._is_changed = True
                self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread; what is open stays pinned for a while, since devices outlive a server that is started again."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_CLOSE_SECONDS)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._is_changed or self._closed, _PATROL_S)
                if self._is_changed:
                    self._changed.wait_for(lambda: self._closed, _DELAY_S)
                self._is_changed = False
                wanted = set(self._held)
                if self._closed or (not wanted and not self._pinned):
                    self._thread = None
                    return
            try:
                self._settle(wanted)
            except StoreReadOnly as error:
                _log.info("what is open is not pinned: %s", error)
                with self._lock:
                    self._store = self._thread = None
                return
            except StoreError as error:
                _log.info("what is open is not pinned yet: %s", error)

    def _settle(self, wanted: set[Digest]) -> None:
        """Makes the pins that are missing or of another day, and deletes the others."""
        store = self._store
        assert store is not None
        if wanted - self._pinned.keys() or self._clock() >= self._asked + _REFRESH_S:
            self._day, self._asked = pin_day(store_time(store)), self._clock()
        for version in wanted:
            before = self._pinned.get(version)
            if before != self._day:
                if hold_version(store, version, open_holder(self._server, self._day)):
                    _log.warning(
                        "version %s is open and being collected as garbage, since no name stands for it: reads of it may fail",
                        version.hex()[:12],
                    )
                self._pinned[version] = self._day
                if before is not None:
                    unpin_version(store, version, open_holder(self._server, before))
        for version in self._pinned.keys() - wanted:
            unpin_version(store, version, open_holder(self._server, self._pinned[version]))
            del self._pinned[version]
