"""A small NBD client, for what well-behaved ones never send (protocol: NetworkBlockDevice/nbd, doc/proto.md)."""

import socket
import struct
from pathlib import Path

OPT_GO, OPT_STRUCTURED_REPLY, OPT_SET_META_CONTEXT = 7, 8, 10
REPLY_ACK = 1
CMD_READ, CMD_WRITE, CMD_FLUSH, CMD_TRIM, CMD_ZERO, CMD_BLOCK_STATUS = 0, 1, 3, 4, 6, 7
FUA, NO_HOLE, FAST_ZERO = 1, 2, 16


class RefusedError(Exception):
    """The server has no such export."""


class Nbd:
    """One connection."""

    def __init__(self, where: Path | tuple[str, int], export: str, structured: bool = False) -> None:
        """Connects to a Unix socket, or to a host and port."""
        self.socket = socket.socket(socket.AF_INET if isinstance(where, tuple) else socket.AF_UNIX)
        self.socket.settimeout(30)
        try:
            self._negotiate(where, export, structured)
        except BaseException:
            self.socket.close()
            raise

    def _negotiate(self, where: Path | tuple[str, int], export: str, structured: bool) -> None:
        self.socket.connect(where if isinstance(where, tuple) else str(where))
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        (flags,) = struct.unpack(">H", self.take(2))
        self.socket.sendall(struct.pack(">I", flags & 3))
        self.structured = structured
        if structured:
            self.option(OPT_STRUCTURED_REPLY, b"")
            context = b"base:allocation"
            name = export.encode()
            body = struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(context)) + context
            self.option(OPT_SET_META_CONTEXT, body)
        name = export.encode()
        replies = self.option(OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        self.size = next(struct.unpack(">Q", body[2:10])[0] for body in replies if body[:2] == b"\0\0")

    def option(self, number: int, body: bytes) -> list[bytes]:
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(body)) + body)
        found: list[bytes] = []
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            data = self.take(length)
            if kind & 1 << 31:
                raise RefusedError(data.decode())
            if kind == REPLY_ACK:
                return found
            found.append(data)

    def send(self, command: int, offset: int, length: int, handle: int = 1, flags: int = 0, data: bytes = b"") -> None:
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, command, handle, offset, length) + data)

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        self.change(CMD_WRITE, offset, len(data), flags, data)

    def flush(self) -> None:
        self.change(CMD_FLUSH, 0, 0)

    def change(self, command: int, offset: int, length: int, flags: int = 0, data: bytes = b"") -> None:
        """Sends a request whose answer has no data; OSError with the server's errno."""
        self.send(command, offset, length, flags=flags, data=data)
        self._answer()

    def read(self, offset: int, length: int) -> bytes:
        """The bytes, by a simple reply; OSError with the server's errno."""
        self.send(CMD_READ, offset, length)
        self._answer()
        return self.take(length)

    def status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(length, flags) of extents; OSError with the server's errno."""
        assert self.structured
        self.send(CMD_BLOCK_STATUS, offset, length)
        found: list[tuple[int, int]] = []
        while True:
            magic, flags, kind, _, size = struct.unpack(">IHHQI", self.take(20))
            assert magic == 0x668E33EF
            data = self.take(size)
            if kind & 1 << 15:
                raise OSError(struct.unpack(">I", data[:4])[0], "the server answered with an error")
            if kind == 5:
                found += [(n, f) for n, f in struct.iter_unpack(">II", data[4:])]
            if flags & 1:
                return found

    def _answer(self) -> None:
        magic, code, _ = struct.unpack(">IIQ", self.take(16))
        assert magic == 0x67446698
        if code:
            raise OSError(code, "the server answered with an error")

    def take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise ConnectionError("the server hung up")
            data += more
        return data

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "Nbd":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
