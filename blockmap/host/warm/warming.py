"""Runs the process that warms the kernel for a start, and goes on when the command that began it has ended: it holds the lock of
the file `warming` in the device's folder.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from blockmap.control.client import Client
from blockmap.control.messages import Follows, Readings
from blockmap.errors import BlockmapError
from blockmap.host import background
from blockmap.host.devices.device import USUAL_READ_AHEAD_KIB, set_read_ahead
from blockmap.host.warm.warm import plan, warm

_NAME = "warming"
_LOOK_SECONDS = 0.2
_ANSWER_SECONDS = 15.0
"""The server waits for the bundle's head; until it has answered, nothing is read ahead either."""


@dataclass(frozen=True, slots=True)
class Warming:
    """A warming process, as the process that started it holds it."""

    _mounted: int
    """The pipe that says that the image is mounted; if it is closed without that, the warming ends."""

    def go_on(self, where: Path | str) -> None:
        """Says that the image is mounted there."""
        with contextlib.suppress(OSError):
            os.write(self._mounted, os.fsencode(where))
        os.close(self._mounted)

    def give_up(self) -> None:
        """Says that the image will not be mounted."""
        os.close(self._mounted)


def begin(client: Client, export: str, device: str, folder: Path, needed: Sequence[int] = ()) -> Warming:
    """Starts to warm what starts of `export` read, as the server says; `device` shows it, with a read-ahead of 0 until then.

    The process keeps the descriptors that are `needed` to reach the directory where the image will be mounted.
    """
    reading, writing = os.pipe()
    lock = background.lock(folder / _NAME)
    try:
        # Before the first read of the device: no start asked for what the kernel reads ahead.
        set_read_ahead(device, 0)
        if os.fork() == 0:
            _be(client, export, device, reading, lock, needed)
    finally:
        os.close(lock)
        os.close(reading)
    return Warming(writing)


def end(folder: Path, device: str) -> None:
    """Ends the process that warms a device, and sets the usual read-ahead; HostError where it does not end.

    Needed before the image can be unmounted. `folder` is the device's.
    """
    with background.ended(folder / _NAME, "reads ahead of a start") as was_begun:
        if was_begun:
            set_read_ahead(device, USUAL_READ_AHEAD_KIB)


def is_warming(folder: Path) -> bool:
    """Returns True if a process warms the device of a folder."""
    return background.is_running(folder / _NAME)


def _be(client: Client, export: str, device: str, pipe: int, lock: int, needed: Sequence[int]) -> NoReturn:
    """Runs the process itself; does not return, and undoes nothing that its parent is about to undo."""
    try:
        background.note_pid(lock, os.getpid())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        os.chdir("/")
        _let_go(keep=(pipe, lock, *needed))
        _warm(client, export, device, pipe)
    finally:
        os._exit(0)


def _let_go(keep: Sequence[int]) -> None:
    """Closes all that the parent had open: readers of its output wait for its end, and its locks are not ours to hold."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    at = 3
    for fd in sorted(keep):
        os.closerange(at, fd)
        at = fd + 1
    os.closerange(at, os.sysconf("SC_OPEN_MAX"))


def _warm(client: Client, export: str, device: str, pipe: int) -> None:
    server = Client(client.nbd_socket, _ANSWER_SECONDS)
    try:
        told = server.ask(Readings(export))
        pieces = plan(told.readings, told.soon)
        if not pieces:
            return
        # Open until the mount is there: the last to close a device drops what its page cache holds.
        shown, root = os.open(device, os.O_RDONLY), _Root(pipe)
        warm(pieces, shown, root)
        os.close(shown)
        root.close()
        # What was left out is read one block at a time, so that the server sees which, and no neighbour has to be fetched.
        while server.ask(Follows(export)).follows:
            time.sleep(_LOOK_SECONDS)
    except (BlockmapError, OSError, ValueError, KeyError, TypeError):
        pass  # without a usable answer nothing is warmed
    finally:
        set_read_ahead(device, USUAL_READ_AHEAD_KIB)


class _Root:
    """Waits, in whichever thread needs it first, until the image is mounted; returns its root."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()  # held while one waits: the others need the same
        self._known = False
        self._root: int | None = None

    def __call__(self) -> int | None:
        with self._lock:
            if not self._known:
                where = os.read(self._pipe, 4096)
                self._root = os.open(where, os.O_PATH | os.O_DIRECTORY) if where else None
                self._known = True
            return self._root

    def close(self) -> None:
        """Lets the mount go, so that it can be unmounted."""
        with self._lock:
            if self._root is not None:
                os.close(self._root)
