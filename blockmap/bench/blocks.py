"""An NBD client that reads and writes blocks, on a connection that stays open between loads.

fio opens one for each of its runs, so nothing could be said to the server between its connecting and its reading.
"""

import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from blockmap.errors import HostError
from blockmap.format import BLOCK

# The NBD protocol: github.com/NetworkBlockDevice/nbd, doc/proto.md.
_GREETING = b"NBDMAGICIHAVEOPT"
_OPT_GO = 7
_ACK = 1
_WRITE = 1
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC = 0x25609513
_REPLY = struct.Struct(">IIQ")
_REPLY_MAGIC = 0x67446698
_SECONDS = 60


class BlockClient:
    """One connection to an export, by a Unix socket."""

    def __init__(self, path: Path, export: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_SECONDS)
        try:
            self._open(path, export.encode())
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "BlockClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def read(self, offsets: Sequence[int], depth: int) -> None:
        """Reads a block at each offset, so many at a time; HostError where one fails."""
        answer = bytearray(depth * (_REPLY.size + BLOCK))
        for at in range(0, len(offsets), depth):
            batch = offsets[at : at + depth]
            self._socket.sendall(b"".join(_REQUEST.pack(_REQUEST_MAGIC, 0, 0, each, each, BLOCK) for each in batch))
            view = memoryview(answer)[: len(batch) * (_REPLY.size + BLOCK)]
            self._fill(view)
            for start in range(0, len(view), _REPLY.size + BLOCK):
                magic, error, _ = _REPLY.unpack_from(view, start)
                if magic != _REPLY_MAGIC or error:
                    raise HostError(f"the server answered a read with error {error}: see its log")

    def write(self, offset: int, data: bytes) -> None:
        """Writes data; HostError where that fails."""
        self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _WRITE, 0, offset, len(data)) + data)
        magic, error, _ = _REPLY.unpack(self._take(_REPLY.size))
        if magic != _REPLY_MAGIC or error:
            raise HostError(f"the server answered a write with error {error}: see its log")

    def _open(self, path: Path, export: bytes) -> None:
        self._socket.connect(str(path))
        if self._take(len(_GREETING)) != _GREETING:
            raise HostError(f"what answers at {path} is no NBD server")
        self._take(2)
        body = struct.pack(">I", len(export)) + export + b"\0\0"
        self._socket.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", _OPT_GO, len(body)) + body)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self._take(20))
            said = self._take(length)
            if kind >> 31:
                raise HostError(f"the server refused {export.decode()}: {said.decode(errors='replace')}")
            if kind == _ACK:
                return

    def _take(self, size: int) -> bytes:
        data = bytearray(size)
        self._fill(memoryview(data))
        return bytes(data)

    def _fill(self, view: memoryview) -> None:
        while view:
            got = self._socket.recv_into(view)
            if not got:
                raise HostError("the server hung up: see its log")
            view = view[got:]
