"""File maps list the blocks of each file of a volume. They are derived from the volume, and stored beside it.

    offset  size  type    meaning
    0       4     s       magic `bmfm`
    4       1     u8      format, 1
    5       3     -       zero
    8       32    digest  root of the volume
    40      4     u32     bytes of the body before compression
    44      -     -       body, one zstd frame
    end-32  32    -       SHA-256 of all before

The body has one record per path, sorted by path bytes: path length u16, runs u32, size u64 (bytes), path, then per run
start u64 and length u32 (blocks). Little-endian.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import NamedTuple, Protocol

from blockmap.errors import FormatError
from blockmap.format.digest import DIGEST_BYTES, Digest

MAGIC = b"bmfm"
FORMAT = 1
MAX_BODY = 1 << 30
MAX_PATH = (1 << 16) - 1
"""Bytes of a path; a longer one, which no system call takes, has no record."""

_PIECE_BYTES = 1 << 16
_HEAD = struct.Struct("<4sB3s32sI")
_FILE = struct.Struct("<HIQ")
_RUN = struct.Struct("<QI")


FileRun = tuple[int, int]
"""Start and length, in blocks of the volume."""


class BodyStream(Protocol):
    """Compresses pieces to one zstd frame as they come."""

    def compress(self, data: bytes) -> bytes: ...
    def flush(self) -> bytes: ...


class File(NamedTuple):
    path: bytes
    size: int
    """Size of the file in bytes."""
    runs: list[FileRun]
    """Runs of blocks with the file's data, in the order of the file."""

    @property
    def blocks(self) -> int:
        """Returns the number of blocks that hold data of the file."""
        return sum(length for _, length in self.runs)


def folders_above(path: bytes) -> list[bytes]:
    """Returns all directories above a path except the root, the nearest first."""
    parts = path.split(b"/")
    return [b"/".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def encode(
    root: Digest, files: Iterable[tuple[bytes, int, list[FileRun]]], compressor: Callable[[int], BodyStream]
) -> bytes:
    """Returns the object as stored; `files` are gone through twice, since the size of the body comes before it.

    `compressor` makes what compresses a body of so many bytes, which comes in pieces. Raises FormatError for too many files.
    """
    raw = sum(_FILE.size + len(path) + _RUN.size * len(runs) for path, _, runs in files)
    if raw > MAX_BODY:
        raise FormatError(f"the file map takes {raw} bytes: {MAX_BODY} at most are kept")
    stream = compressor(raw)
    data = bytearray(_HEAD.pack(MAGIC, FORMAT, bytes(3), root, raw))
    piece = bytearray()
    for path, size, runs in files:
        piece += _FILE.pack(len(path), len(runs), size)
        piece += path
        for run in runs:
            piece += _RUN.pack(*run)
        if len(piece) >= _PIECE_BYTES:
            data += stream.compress(bytes(piece))
            piece.clear()
    data += stream.compress(bytes(piece))
    data += stream.flush()
    return bytes(data) + sha256(data).digest()


def decode(data: bytes, root: Digest, expand: Callable[[memoryview, int], bytes]) -> Iterator[File]:
    """Parses the file map of the volume `root`. Raises FormatError."""
    return _files(body(data, root, expand))


def body(data: bytes, root: Digest, expand: Callable[[memoryview, int], bytes]) -> bytes:
    """Returns all that the file map of the volume `root` says, uncompressed and not parsed. Raises FormatError."""
    end = len(data) - DIGEST_BYTES
    if end < _HEAD.size or sha256(memoryview(data)[:end]).digest() != data[end:]:
        raise FormatError("the file map is damaged: its last 32 bytes are not the SHA-256 of the rest")
    magic, version, zero, name, raw = _HEAD.unpack_from(data)
    if (magic, version, zero, name) != (MAGIC, FORMAT, bytes(3), root) or raw > MAX_BODY:
        raise FormatError(f"the object is not the file map of {root.hex()} in a format known to this release")
    return expand(memoryview(data)[_HEAD.size : end], raw)


def _files(body: bytes) -> Iterator[File]:
    at = 0
    try:
        while at < len(body):
            length, count, size = _FILE.unpack_from(body, at)
            at += _FILE.size
            path, at = body[at : at + length], at + length
            end = at + _RUN.size * count
            if end > len(body):
                raise FormatError("a record of the file map reaches past its end")
            runs = list(_RUN.iter_unpack(body[at:end]))
            at = end
            yield File(path, size, runs)
    except struct.error as error:
        raise FormatError("a record of the file map reaches past its end") from error
