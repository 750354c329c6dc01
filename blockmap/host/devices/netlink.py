"""Speaks with the kernel's nbd over generic netlink, as linux/nbd-netlink.h has it: makes devices of connected sockets, gives
them new sockets, takes them apart.

The kernel tells the cause of a refusal to its log alone, so an OSError has what the errno means for the command.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

_NETLINK_GENERIC = 16
_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1

# linux/netlink.h and linux/genetlink.h
_MESSAGE = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
_GENERIC = struct.Struct("=BBH")
"""struct genlmsghdr: command, version, reserved."""
_ATTRIBUTE = struct.Struct("=HH")
"""struct nlattr: length, type."""
_ERROR = 2
_REQUEST, _ACK = 1, 4
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_CONTROLLER, _GET_FAMILY = 16, 3
_FAMILY_ID, _FAMILY_NAME, _GROUPS, _GROUP_NAME, _GROUP_ID = 1, 2, 7, 1, 2

# linux/nbd-netlink.h
_FAMILY, _GROUP = b"nbd", b"nbd_mc_group"
_CONNECT, _DISCONNECT, _RECONFIGURE, _LINK_DEAD, _STATUS = 1, 2, 3, 4, 5
_INDEX, _SIZE, _BLOCK_SIZE, _TIMEOUT, _SERVER_FLAGS, _SOCKETS, _DEAD_CONN_TIMEOUT = 1, 2, 3, 4, 5, 7, 8
_DEVICE_LIST, _BACKEND = 9, 10
_SOCKET_ITEM, _SOCKET_FD = 1, 1
_DEVICE_INDEX, _DEVICE_CONNECTED = 1, 2

_RECEIVE_BYTES = 1 << 17
_MEANINGS = {
    (_CONNECT, errno.EPERM): "only root may make devices",
    (_CONNECT, errno.EINVAL): "it does not take the sockets or the size",
    (_CONNECT, errno.ENOMEM): "it has no memory for one more device",
    (_RECONFIGURE, errno.EINVAL): "it is not connected, or was connected to something else",
    (_RECONFIGURE, errno.EPERM): "only root may change devices",
    (_DISCONNECT, errno.EINVAL): "there is no such device, or it was not made over netlink",
}
"""What an errno means for a command."""


class Netlink:
    """Sends commands to the kernel's nbd, for one thread at a time."""

    def __init__(self) -> None:
        """Raises OSError where the kernel has no nbd, or its module is not loaded."""
        self._socket = _open()
        self._sequence = 0
        try:
            self._family, self._group = self._find_family()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def connect(
        self,
        sockets: Sequence[socket.socket],
        *,
        size: int,
        block_size: int,
        flags: int,
        dead_seconds: int,
        identifier: str,
    ) -> int:
        """Makes a device of sockets that have negotiated the same export, and returns its number; OSError.

        The kernel chooses a device that nobody uses, or adds one. `flags` are NBD's transmission flags. Requests wait up to
        `dead_seconds` while no connection lives. `identifier` is asked for by whoever gives the device new sockets.
        """
        answers = self._ask(
            self._family,
            _CONNECT,
            _u64(_SIZE, size),
            _u64(_BLOCK_SIZE, block_size),
            _u64(_TIMEOUT, 0),  # the server bounds its fetches: a shorter limit here would cut what is only slow
            _u64(_SERVER_FLAGS, flags),
            _u64(_DEAD_CONN_TIMEOUT, dead_seconds),
            _text(_BACKEND, identifier),
            _sockets(sockets),
        )
        for answer in answers:
            if _INDEX in answer:
                return _int(answer[_INDEX])
        raise OSError(errno.EPROTO, "the kernel's nbd does not say which device it made")

    def reconfigure(
        self,
        index: int,
        identifier: str,
        sockets: Sequence[socket.socket] = (),
        *,
        size: int | None = None,
        block_size: int | None = None,
    ) -> None:
        """Gives a device new sockets in place of dead ones, or another size; OSError.

        It succeeds as well where no connection is dead: then the kernel takes none of the sockets.
        """
        attributes = [_u32(_INDEX, index), _text(_BACKEND, identifier)]
        if size is not None:
            attributes.append(_u64(_SIZE, size))
        if block_size is not None:
            attributes.append(_u64(_BLOCK_SIZE, block_size))
        if sockets:
            attributes.append(_sockets(sockets))
        self._ask(self._family, _RECONFIGURE, *attributes)

    def disconnect(self, index: int) -> None:
        """Disconnects a device: requests that wait fail, and the number is free once nobody has the device open. OSError."""
        self._ask(self._family, _DISCONNECT, _u32(_INDEX, index))

    def connected(self) -> set[int]:
        """Returns the numbers of the devices that are connected, by whomever, even if no connection lives; OSError."""
        found = set()
        for answer in self._ask(self._family, _STATUS):
            for _, item in _attributes(answer.get(_DEVICE_LIST, b"")):
                device = dict(_attributes(item))
                if device[_DEVICE_CONNECTED] != b"\0":
                    found.add(_int(device[_DEVICE_INDEX]))
        return found

    def dead_links(self) -> "DeadLinks":
        """Returns the events of connections that die from now on; OSError."""
        return DeadLinks(self._family, self._group)

    def _find_family(self) -> tuple[int, int]:
        """Returns the number of the family, and that of its multicast group."""
        (answer, *_) = self._ask(_CONTROLLER, _GET_FAMILY, _attribute(_FAMILY_NAME, _FAMILY + b"\0"))
        for _, group in _attributes(answer[_GROUPS]):
            fields = dict(_attributes(group))
            if fields[_GROUP_NAME].rstrip(b"\0") == _GROUP:
                return _int(answer[_FAMILY_ID]), _int(fields[_GROUP_ID])
        raise OSError(errno.EPROTO, "the kernel's nbd has no events")

    def _ask(self, family: int, command: int, *attributes: bytes) -> list[dict[int, bytes]]:
        """Sends a command, and returns the attributes of each answer; OSError with the kernel's errno."""
        self._sequence += 1
        body = _GENERIC.pack(command, 1, 0) + b"".join(attributes)
        length = _MESSAGE.size + len(body)
        self._socket.sendall(_MESSAGE.pack(length, family, _REQUEST | _ACK, self._sequence, 0) + body)
        answers = []
        while True:
            for kind, sequence, payload in _messages(self._socket.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue
                if kind != _ERROR:
                    answers.append(dict(_attributes(payload[_GENERIC.size :])))
                    continue
                code = -struct.unpack_from("=i", payload)[0]
                if code:
                    raise OSError(
                        code, _MEANINGS.get((command, code) if family > _CONTROLLER else (0, 0), os.strerror(code))
                    )
                return answers


class DeadLinks:
    """Tells which devices have lost a connection; `fileno` is readable when there is something to read."""

    def __init__(self, family: int, group: int) -> None:
        self._family = family
        self._socket = _open()
        try:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> set[int] | None:
        """Returns the devices of all events so far; None where some were lost, as too many came at once. OSError."""
        found: set[int] = set()
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                return None
            for kind, _, payload in _messages(data):
                if kind == self._family and payload[0] == _LINK_DEAD:
                    found.add(_int(dict(_attributes(payload[_GENERIC.size :]))[_INDEX]))


def is_there() -> bool:
    """Returns True if the kernel has nbd, and its module is loaded."""
    try:
        with Netlink():
            return True
    except OSError:
        return False


def backend(index: int) -> str | None:
    """Returns the identifier of a device that is connected; None where it has none, or there is no such device."""
    try:
        return Path(f"/sys/block/nbd{index}/backend").read_text().rstrip("\n")
    except OSError:
        return None


def backends() -> dict[int, str]:
    """Returns the identifiers of all connected devices that have one."""
    indexes = [int(path.parent.name[3:]) for path in Path("/sys/block").glob("nbd*/backend")]
    return {index: found for index in indexes if (found := backend(index)) is not None}


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
    try:
        opened.bind((0, 0))
    except BaseException:
        opened.close()
        raise
    return opened


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yields type, sequence number and payload of each message."""
    at = 0
    while at + _MESSAGE.size <= len(data):
        length, kind, _, sequence, _ = _MESSAGE.unpack_from(data, at)
        yield kind, sequence, data[at + _MESSAGE.size : at + length]
        at += _aligned(length)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields type and value of each attribute."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _u64(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=Q", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _sockets(sockets: Sequence[socket.socket]) -> bytes:
    items = [_attribute(_SOCKET_ITEM | _NESTED, _u32(_SOCKET_FD, each.fileno())) for each in sockets]
    return _attribute(_SOCKETS | _NESTED, b"".join(items))


def _int(value: bytes) -> int:
    return int.from_bytes(value, "little" if struct.pack("=H", 1) == b"\1\0" else "big")


def _aligned(length: int) -> int:
    return (length + 3) & ~3
