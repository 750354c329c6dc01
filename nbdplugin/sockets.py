"""Finds the clients' sockets of this process in the list of descriptors, as nbdkit does not name them."""

import contextlib
import ctypes
import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator

_libnbdkit = ctypes.CDLL(None)
_ANY = ("0.0.0.0", "::")
_SOCKADDR_BYTES = 128
_DRAIN_BYTES = 1 << 20
_SPARE = 256
"""Descriptors that are not given to clients: connections to the store, files of the cache, clients of other sockets."""


def has_room() -> bool:
    """Returns True if there are descriptors left for another client, besides those that the server needs for itself."""
    lowest = os.dup(0)  # as many are in use, at least
    os.close(lowest)
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return lowest < most - min(_SPARE, most // 4)


def hang_up_on_idle() -> None:
    """Shuts down the receiving side of clients' connections; answers that are under way still reach them."""
    for _, client in _clients():
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RD)


def leave_clients() -> None:
    """Hangs up on all clients; what nbdkit answers from now on reaches nobody.

    nbdkit answers with ESHUTDOWN what it has received when it notices that a client has gone, and before 1.34 aborts where two
    answers cannot be sent: so it goes on with a socket whose other end says nothing and takes all.
    """
    nowhere, sink = socket.socketpair()
    sink.shutdown(socket.SHUT_WR)
    threading.Thread(target=_drain, args=[sink], name="drain", daemon=True).start()
    with nowhere:
        for fd, client in _clients():
            with contextlib.suppress(OSError):
                if os.fstat(fd).st_ino == os.fstat(client.fileno()).st_ino:
                    os.dup2(nowhere.fileno(), fd, inheritable=False)
                client.shutdown(socket.SHUT_RDWR)


def peer() -> tuple[str, bool]:
    """Returns who is connected, for the log, and whether by a Unix socket; to be called in a callback, which is where nbdkit
    knows."""
    uid_of = _libnbdkit.nbdkit_peer_uid
    uid_of.restype = ctypes.c_int64
    address = ctypes.create_string_buffer(_SOCKADDR_BYTES)
    length = ctypes.c_uint32(_SOCKADDR_BYTES)
    if _libnbdkit.nbdkit_peer_name(address, ctypes.byref(length)) == 0:
        (family,) = struct.unpack_from("H", address)
        if family in (socket.AF_INET, socket.AF_INET6):
            (port,) = struct.unpack_from("!H", address, 2)
            packed = address.raw[4:8] if family == socket.AF_INET else address.raw[8:24]
            return f"{socket.inet_ntop(family, packed)} port {port}", False
        if family == socket.AF_UNIX:
            uid = uid_of()
            return f"uid {uid}" if uid >= 0 else "an unknown client", True
    return "an unknown client", False


def _drain(sink: socket.socket) -> None:
    with sink:
        while sink.recv(_DRAIN_BYTES):
            pass


def _clients() -> Iterator[tuple[int, socket.socket]]:
    """Yields incoming connections, each by its descriptor and as a copy: sockets with the address of one that listens. Outgoing
    ones have other addresses."""
    listening, connected = set(), []
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            each = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue  # closed meanwhile
        try:
            address = _address(each)
            if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                listening.add(address)
            elif each.type == socket.SOCK_STREAM:
                connected.append((address, int(name), each))
                continue
        except OSError:
            pass
        each.close()
    for (family, host, port), fd, each in connected:
        with each:
            if (family, host, port) in listening or any((family, any_, port) in listening for any_ in _ANY):
                yield fd, each


def _address(each: socket.socket) -> tuple[int, object, int]:
    """Returns a socket's family, host or path, and port."""
    name = each.getsockname()
    return (each.family, name[0], name[1]) if isinstance(name, tuple) else (each.family, name, 0)
