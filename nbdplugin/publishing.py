"""Has captures of clones published, by `blockmap.commit.publisher` in a process of its own: not under this one's lock."""

import json
import subprocess
import sys
import threading
from pathlib import Path

from blockmap.commit import CONFLICT_STATUS
from blockmap.errors import HostError, NameMoved
from blockmap.server.commits import PublishedCapture
from nbdplugin.background import start_guarded


class PublisherProcess:
    """Publishes one capture at a time, and ends what runs when it is closed."""

    def __init__(self, store: str, state: Path, sign: Path | None) -> None:
        """`sign` is the file of the private key that versions and entries are signed with."""
        self._sign = [] if sign is None else [str(sign)]
        self._store = store
        self._state = state
        self._lock = threading.Lock()  # guards what follows
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def publish(self, capture: int) -> PublishedCapture:
        """Returns what a capture has become; NameMoved, HostError with the reason where it is to be tried again."""
        program = (f"{sys.prefix}/bin/python", "-m", "blockmap.commit.publisher")
        with self._lock:
            if self._closed:
                raise HostError("the server is about to end")
            process = self._process = start_guarded(
                [*program, self._store, str(self._state), str(capture), *self._sign]
            )
        with process:
            said, _ = process.communicate()
        last = (said.strip().splitlines() or [f"its process ended with {process.returncode}"])[-1]
        if process.returncode == CONFLICT_STATUS:
            raise NameMoved(last)
        try:
            if process.returncode:
                raise HostError(last)
            found = json.loads(last)
            return PublishedCapture(found["export"], found["entry"])
        except (ValueError, KeyError, TypeError) as error:
            raise HostError(f"the process that publishes said {last!r}") from error

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
