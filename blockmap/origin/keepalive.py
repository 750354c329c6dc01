"""Keeps connections to a remote store open, as servers close idle ones, and opening one costs two round trips."""

import logging
import threading
from collections.abc import Callable

from blockmap.errors import BlockmapError
from blockmap.store.concurrent import spawn

_log = logging.getLogger(__name__)

_CONNECTIONS = 16
"""Connections that are kept: a bundle is read in as many ranges at once, and a new connection would cost a round trip."""
_EVERY_S = 15.0
"""Seconds between two requests: common servers close a connection after 60 to 75, some load balancers after 20."""
_CLOSE_S = 1.0
"""Seconds that requests under way are waited for at the end."""


class ConnectionKeeper:
    """Sends a small request over several connections at once, every few seconds."""

    def __init__(self, ping: Callable[[], object], every_s: float = _EVERY_S) -> None:
        self.is_warm = False
        """Whether a request was sent over each connection at least once, answered or not."""
        self._ping = ping
        self._every_s = every_s
        self._end = threading.Event()
        self._start = threading.Barrier(_CONNECTIONS)
        self._thread = threading.Thread(target=self._run, name="connection keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while True:
            for done in [spawn(self._once) for _ in range(_CONNECTIONS)]:
                done.result()
            self.is_warm = True
            if self._end.wait(self._every_s):
                return

    def _once(self) -> None:
        self._start.wait()  # one after the other would go over the same connection
        try:
            self._ping()
        except BlockmapError as error:
            _log.debug("a connection to the store is not kept open: %s", error)
