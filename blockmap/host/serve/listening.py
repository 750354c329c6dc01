"""Opens the sockets on which a server listens, and holds the lock that says whose they are."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from blockmap.errors import HostError, UsageError

_BACKLOG = 4096
"""Clients that may wait to be accepted: all come back at once when nbdkit starts again, and libnbd gives up if it has to wait
for a place in the queue of a Unix socket."""


@contextlib.contextmanager
def owned(nbd_socket: Path) -> Iterator[int]:
    """Holds the lock beside a server's socket, and gives its descriptor; HostError where another server has it."""
    try:
        _make_directory(nbd_socket.parent)
        fd = os.open(lock_of(nbd_socket), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"cannot make {nbd_socket}: {error.strerror}; name another with --socket") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise HostError(f"another server is at {nbd_socket}: use it, or name another socket with --socket") from None
    try:
        yield fd
    finally:
        os.close(fd)


def lock_of(nbd_socket: Path) -> Path:
    """Returns the file of the lock that whoever serves at a socket holds; its pids are in it."""
    return nbd_socket.with_name(nbd_socket.name + ".lock")


def is_owned(nbd_socket: Path) -> bool:
    """Returns True if a server holds the lock."""
    try:
        fd = os.open(lock_of(nbd_socket), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextlib.contextmanager
def unix_socket(path: Path, mode: int, option: str = "--socket", group: int | None = None) -> Iterator[socket.socket]:
    """Listens at a path, which is given to a group; replaces a socket that a killed server left there. HostError."""
    if path.exists() and not path.is_socket():
        raise HostError(f"{path} is there and is not a socket: remove it, or name another with {option}")
    if _answers(path):
        raise HostError(f"another program listens at {path}: end it, or name another socket with {option}")
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = False
    try:
        old = os.umask(0o777 & ~mode)
        try:
            listening.bind(str(path))
            bound = True
            if group is not None:
                os.chown(path, -1, group)
        except OSError as error:
            raise HostError(
                f"cannot listen at {path}: {error.strerror or error}; name another with {option}"
            ) from error
        finally:
            os.umask(old)
        listening.listen(_BACKLOG)
        yield listening
    finally:
        listening.close()
        if bound:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def tcp_socket(host: str, port: int, option: str = "--listen") -> Iterator[socket.socket]:
    """Listens on TCP; HostError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise HostError(f"cannot listen on {host}:{port}: {error.strerror or error}; change {option}") from error
    with listening:
        # Connections inherit it. Without, one whose client vanished stays until a send to it fails.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        yield listening


def parse_listen(text: str) -> tuple[str, int]:
    """Parses HOST:PORT; returns host, which is loopback where it is left out, and port. UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{text!r} is not HOST:PORT, for example 127.0.0.1:10809")
    return host.strip("[]") or "127.0.0.1", int(port)


def parse_place(text: str) -> Path | tuple[str, int]:
    """Parses a path, which has a slash, or HOST:PORT; UsageError."""
    return Path(text).absolute() if "/" in text else parse_listen(text)


def is_loopback(host: str) -> bool:
    return host.startswith("127.") or host in ("localhost", "::1")


def _make_directory(path: Path) -> None:
    """Makes a directory that others may enter, whatever the umask: the socket's mode says who may connect."""
    if not path.exists():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except TimeoutError:
            return True
        except OSError:
            return False
    return True
