"""Ends a server from another process."""

import os
import select
import signal
from pathlib import Path

from blockmap.errors import HostError, NoServer
from blockmap.host.serve.listening import is_owned, lock_of

_END_SECONDS = 30.0
"""A supervisor gives nbdkit 10 s to end, kills it then, and ends itself."""


def stop(nbd_socket: Path) -> int:
    """Ends the server at a socket, and waits until it has ended; returns its process. NoServer, HostError."""
    try:
        words = lock_of(nbd_socket).read_text().split()
    except PermissionError as error:
        raise HostError(f"may not end the server at {nbd_socket}: run it with sudo") from error
    except OSError:
        words = []
    if not is_owned(nbd_socket):
        raise NoServer(f"no blockmap server is at {nbd_socket}: another's socket is named with --socket")
    try:
        pid = int(words[2])
        fd = os.pidfd_open(pid)
    except (IndexError, ValueError, OSError) as error:
        raise HostError(f"the server at {nbd_socket} is about to start or to end: try again") from error
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        if not select.select([fd], [], [], _END_SECONDS)[0]:
            raise HostError(f"the server at {nbd_socket}, process {pid}, does not end: its log says why")
    except PermissionError as error:
        raise HostError(f"may not end the server at {nbd_socket}, process {pid}: run it with sudo") from error
    except ProcessLookupError:
        pass  # it has ended meanwhile
    finally:
        os.close(fd)
    return pid
