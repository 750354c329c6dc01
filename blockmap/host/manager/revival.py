"""Starts the servers of devices again when they are killed, where no unit of systemd does that (host.serve.revival)."""

import os
import select
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host.attachment_table import sockets_of_devices
from blockmap.host.serve.revival import revive
from blockmap.local.paths import control_socket, is_remote

_LOOK_SECONDS = 0.5
"""Between two looks for a server that did not answer yet."""


class Revival:
    """The servers of this host that devices need, by their sockets."""

    def __init__(self, state: Path, say: Callable[[str], None]) -> None:
        self._state = state
        self._say = say
        self._known: dict[str, int] = {}
        """A handle of each server's process."""

    def watch(self, asked: int, changed: Callable[[], None]) -> None:
        """Watches until the pipe `asked` is closed at its other end; what comes from there means that devices have changed, and
        `changed` is called, as at the beginning."""
        while True:
            changed()
            is_complete = self.look()
            ready, _, _ = select.select([asked, *self._known.values()], [], [], None if is_complete else _LOOK_SECONDS)
            if asked in ready and not os.read(asked, 4096):
                return

    def look(self) -> bool:
        """Starts again what was killed, and notes what runs; returns True if all servers that devices need are known."""
        try:
            needed = {each for each in sockets_of_devices(self._state) if not is_remote(each)}
        except HostError as error:
            self._say(str(error))
            return True
        for path, handle in list(self._known.items()):
            if path not in needed or select.select([handle], [], [], 0)[0]:
                os.close(handle)
                del self._known[path]
        for path in needed - self._known.keys():
            found = _server_at(control_socket(Path(path)))
            if found is None:
                revive(Path(path), self._say)
            else:
                self._known[path] = found
        return needed == self._known.keys()


def _server_at(path: Path) -> int | None:
    """Returns a handle of the server that listens at a control socket; None where there is none, or it has just ended."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(path))
            # The kernel notes who began to listen, which is not who accepts.
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return os.pidfd_open(pid)
        except OSError:
            return None
