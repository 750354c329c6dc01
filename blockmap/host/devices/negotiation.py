"""Connects to an NBD server and agrees on an export, so that the socket can be given to the kernel (NetworkBlockDevice/nbd,
doc/proto.md: fixed newstyle, NBD_OPT_GO)."""

import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host.serve.listening import parse_place

READ_ONLY = 2
MULTI_CONN = 256
"""Transmission flags of NBD."""

_GREETING = b"NBDMAGICIHAVEOPT"
_OPTION = struct.Struct(">8sII")
_REPLY = struct.Struct(">QIII")
_FIXED_NEWSTYLE_NO_ZEROES = 3
_GO = 7
_ACK, _INFO, _ERROR = 1, 3, 1 << 31
_EXPORT, _DESCRIPTION = 0, 2
"""NBD_INFO_EXPORT, NBD_INFO_DESCRIPTION."""
_MAX_REPLY_BYTES = 65536
_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 15),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 30_000),
)
"""A host that has gone without a word is found out within 30 s: its connection fails, and another can be made."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server says of an export."""

    size: int
    """In bytes."""
    flags: int
    """The transmission flags."""
    description: str
    """Empty where the server has none."""


def negotiate(server: str, export: str, seconds: float) -> tuple[socket.socket, Offer]:
    """Connects to a server at a path or HOST:PORT, and opens an export; returns the socket, on which requests can follow.

    No step takes longer than `seconds`. HostError.
    """
    try:
        connection = _connect(server, seconds)
    except OSError as error:
        raise HostError(f"no NBD server answers at {server}: {error.strerror or error}") from error
    try:
        offer = _go(connection, server, export)
        connection.settimeout(None)
        return connection, offer
    except OSError as error:
        connection.close()
        raise HostError(f"the NBD server at {server} does not answer: {error.strerror or error}") from error
    except BaseException:
        connection.close()
        raise


def _connect(server: str, seconds: float) -> socket.socket:
    place = parse_place(server)
    if isinstance(place, Path):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(seconds)
            connection.connect(str(place))
        except BaseException:
            connection.close()
            raise
        return connection
    connection = socket.create_connection(place, timeout=seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection


def _go(connection: socket.socket, server: str, export: str) -> Offer:
    if _take(connection, len(_GREETING)) != _GREETING:
        raise HostError(f"what listens at {server} is no NBD server")
    (offered,) = struct.unpack(">H", _take(connection, 2))
    if offered & _FIXED_NEWSTYLE_NO_ZEROES != _FIXED_NEWSTYLE_NO_ZEROES:
        raise HostError(f"the NBD server at {server} is too old: it does not speak fixed newstyle")
    name = export.encode()
    wanted = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, _DESCRIPTION)
    connection.sendall(
        struct.pack(">I", _FIXED_NEWSTYLE_NO_ZEROES) + _OPTION.pack(b"IHAVEOPT", _GO, len(wanted)) + wanted
    )
    size = flags = -1
    description = ""
    while True:
        _, _, kind, length = _REPLY.unpack(_take(connection, _REPLY.size))
        if length > _MAX_REPLY_BYTES:
            raise HostError(f"what listens at {server} is no NBD server: an answer of {length} bytes")
        data = _take(connection, length)
        if kind & _ERROR:
            said = data.decode(errors="replace").strip() or f"NBD error {kind & ~_ERROR}"
            raise HostError(f"the NBD server at {server} does not open {export}: {said}")
        if kind == _ACK:
            break
        if kind == _INFO and data[:2] == _EXPORT.to_bytes(2, "big"):
            size, flags = struct.unpack(">QH", data[2:12])
        elif kind == _INFO and data[:2] == _DESCRIPTION.to_bytes(2, "big"):
            description = data[2:].decode(errors="replace")
    if size < 0:
        raise HostError(f"the NBD server at {server} does not say how large {export} is")
    return Offer(size, flags, description)


def _take(connection: socket.socket, count: int) -> bytes:
    """Receives exactly so many bytes: what comes after them is the kernel's."""
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionError("it hung up")
        data += more
    return data
