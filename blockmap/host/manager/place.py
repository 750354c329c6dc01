"""Where the process that attaches devices is found: a socket and a lock in the state's folder, whose record it keeps."""

import os
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import blockmap

LOCK = "devices.lock"
"""Held by the process while it serves; it has its pid, and the name of its socket."""
LOG = "devices.log"
SOCKETS = "devices-*.sock"


def socket_name() -> str:
    """Returns the name of the socket, which no other installation has: what it sends, another may not understand."""
    return f"devices-{zlib.crc32(os.fsencode(blockmap.__path__[0])):08x}.sock"


@contextmanager
def reached(state: Path) -> Iterator[Path]:
    """Yields a short path of the state's folder: a socket's has 107 bytes at most. OSError."""
    fd = os.open(state, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def connect(state: Path) -> socket.socket | None:
    """Connects to the process; returns None where none answers. OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with reached(state) as folder:
            connection.connect(str(folder / socket_name()))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return connection


def answers(state: Path) -> bool:
    """Returns True if the process is there; OSError."""
    connection = connect(state)
    if connection is not None:
        connection.close()
    return connection is not None
