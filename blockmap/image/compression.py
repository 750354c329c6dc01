"""Decompresses a layer's blob into its archive in a thread of its own, and checks the digests of both.

Memory is bounded for any blob: pieces of 1 MiB, a short queue, and windows of zstd and xz of at most 128 MiB.
"""

import bz2
import io
import lzma
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any, BinaryIO, cast

import zstandard
from isal import igzip, igzip_lib

from blockmap.errors import ImageError

_PIECE_BYTES = 1 << 20
_QUEUED_PIECES = 4
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""The magic of a frame of metadata, with which zstd streams may begin (RFC 8878, 3.1.2)."""

_XZ = b"\xfd7zXZ\0"
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
"""The magic of bzip2 with that of its first block, or of its end: a file's name may begin with "BZh"."""
_REFUSED = (
    (b"\x04\x22\x4d\x18", "lz4"), (b"LZIP\1", "lzip"), (b"\x1f\x9d", "compress (.Z)"), (b"]\0\0\x80\0", "lzma"),
    (b"PK\3\4", "zip"), (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
)  # fmt: skip
"""First bytes of formats that are recognised in order to be refused by name."""
_MAGIC_BYTES = 10
_XZ_MEMORY = 130 << 20
"""Bytes of memory for a dictionary of 128 MiB; `xz -9` has one of 64 MiB."""

DAMAGED = (EOFError, OSError, cast(type[Exception], igzip_lib.IsalError), zstandard.ZstdError, lzma.LZMAError)
"""What decompressors raise for damaged data."""


class _Counted(io.RawIOBase):
    """Computes the digest of the bytes that are read through it."""

    def __init__(self, raw: BinaryIO, progress: Callable[[int], None]) -> None:
        self._raw = raw
        self._progress = progress
        self.digest = sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        self.digest.update(data)
        self._progress(len(data))
        return len(data)


def archive(
    open_blob: Callable[[], BinaryIO],
    name: str,
    digest: bytes | None,
    diff_id: bytes | None,
    progress: Callable[[int], None],
    took: Callable[[float], None],
) -> Iterator[bytes]:
    """Yields the archive in a blob, in pieces; gzip, zstd, xz, bzip2 and plain are told apart by their first bytes.

    Raises ImageError at the end if a known digest differs, naming the layer `name` and the digest expected. The
    digests prove the type right: engines go by the first bytes too, and mislabelled layers exist.
    The thread ends with this generator: at its end, at an error, or when it is closed.
    `progress` gets the number of stored bytes as they are read, `took` the thread's processor seconds.
    """
    pieces: queue.Queue[bytes | BaseException | None] = queue.Queue(_QUEUED_PIECES)
    stop = threading.Event()

    def put(item: bytes | BaseException | None) -> None:
        while not stop.is_set():
            try:
                pieces.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            with _opened(open_blob, name) as raw:
                _decompress(raw, name, digest, diff_id, progress, put, stop)
        except BaseException as error:
            put(error)
        else:
            took(time.thread_time())
            put(None)

    thread = threading.Thread(target=run, name="decompress", daemon=True)
    thread.start()
    try:
        while (item := pieces.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _opened(open_blob: Callable[[], BinaryIO], name: str) -> BinaryIO:
    try:
        return open_blob()
    except OSError as error:
        raise ImageError(f"layer {name} cannot be opened: {error.strerror or error}; get the image again") from error


class _Streams(io.RawIOBase):
    """Decompresses streams that stand one behind the other, with zeros behind them at most."""

    def __init__(self, blob: io.BufferedReader, make: Callable[[], Any]) -> None:
        self._blob, self._make = blob, make
        self._stream = make()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream.eof:
                data = self._stream.unused_data.lstrip(b"\0")
                while not data and (more := self._blob.read(1 << 16)):
                    data = more.lstrip(b"\0")
                if not data:
                    return 0
                self._stream = self._make()
            else:
                data = self._blob.read(1 << 16) if self._stream.needs_input else b""
                if not data and self._stream.needs_input:
                    raise EOFError("it ends in the middle")
            found = self._stream.decompress(data, len(buffer))
            if found:
                buffer[: len(found)] = found
                return len(found)


def decompressor(blob: Any) -> Any:
    """Returns the archive in a blob (an io.BufferedReader) as a file, by the blob's first bytes. Raises ImageError."""
    magic = blob.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]
    if magic[:2] == _GZIP:
        return igzip.IGzipFile(fileobj=blob, mode="rb")  # type: ignore[no-untyped-call]
    if magic[:4] == _ZSTD or _ZSTD_SKIPPABLE.match(magic):
        return zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True, closefd=False)
    if magic.startswith(_XZ):
        return _Streams(blob, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY))
    if _BZIP2.match(magic):
        return _Streams(blob, bz2.BZ2Decompressor)
    for first, what in _REFUSED:
        if magic.startswith(first):
            raise ImageError(f"it is compressed with {what}, which is not supported: gzip, zstd, xz and bzip2 are")
    return blob


def reason(error: Exception) -> str:
    """Returns why a blob cannot be decompressed, and what to do about it."""
    text = str(error)
    if "too much memory" in text or "Memory usage limit" in text:
        return "its window is larger than 128 MiB, which is not supported: compress it without --long or a larger dictionary"
    return text if isinstance(error, ImageError) else f"{text}; it is truncated or damaged, get it again"


def _decompress(
    raw: BinaryIO,
    name: str,
    digest: bytes | None,
    diff_id: bytes | None,
    progress: Callable[[int], None],
    put: Callable[[bytes], None],
    stop: threading.Event,
) -> None:
    counted = _Counted(raw, progress)
    buffered = io.BufferedReader(counted, 1 << 18)
    content = sha256()
    try:
        opened = decompressor(buffered)
        while not stop.is_set() and (piece := opened.read(_PIECE_BYTES)):
            content.update(piece)
            put(piece)
        while not stop.is_set() and buffered.read(_PIECE_BYTES):
            pass
    except (*DAMAGED, ImageError) as error:
        raise ImageError(f"layer {name} cannot be decompressed: {reason(error)}") from error
    if stop.is_set():
        return
    for what, found, expected in (("blob", counted.digest, digest), ("archive", content, diff_id)):
        if expected is not None and found.digest() != expected:
            raise ImageError(
                f"layer {name} is damaged or truncated: its {what} has the digest sha256:{found.hexdigest()}, and "
                f"sha256:{expected.hex()} is expected; get it again"
            )
