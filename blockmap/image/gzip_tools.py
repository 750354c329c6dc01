"""Compresses archives as those did who made layers' blobs, and finds out by trying who that was.

The same archive gives another gzip stream with each program and level. What is tried: zlib as Python has it, GNU gzip, pigz, and
skopeo for the Go library that skopeo, podman and buildah compress with. Docker's own Go library is in none of these.
"""

import shutil
import subprocess
import threading
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from blockmap.errors import HostError
from blockmap.format.recipe import MAX_HEADER
from blockmap.image.skopeo import recompressed

NONE, ZLIB, GZIP, PIGZ, SKOPEO = "none", "zlib", "gzip", "pigz", "skopeo"
_GZIP_MAGIC = b"\x1f\x8b\x08"
_PLAIN_HEADER = 10
"""Bytes of the header that `gzip -n` and `pigz -n` write."""
_TRAILER_BYTES = 8
_UNKNOWN_SYSTEM = 255
"""The operating system in headers of libraries; programs of Unix have 3."""
_PGZIP_TIME = b"\x00\x09\x6e\x88"
"""The time in headers of the Go library of skopeo: the year 1, cut off."""
_READ_BYTES = 1 << 20
"""Bytes of a blob that are looked at: an archive of three or so of the pieces of 1 MiB that parallel tools make."""
_ARCHIVE_BYTES = 8 << 20
"""Bytes of its archive that are tried: text that shrinks to a twentieth still fills several blocks of the stream."""
_FIRST_BYTES = 256 << 10
"""Bytes of the blob that each tool must make first, which takes 10 to 50 ms."""
_END_BYTES = 128 << 10
"""Bytes at the end of a sample's stream that are another's where more of the archive follows: two blocks of GNU gzip."""
_PIECE_BYTES = 1 << 18
_LEVELS = (6, 9, 1, 5, 4, 3, 7, 8, 2)
"""Levels in the order in which they are tried: the default, the best and the fastest first."""


@dataclass(frozen=True, slots=True)
class GzipTool:
    """A program with its level; 0 is its default."""

    name: str
    level: int

    def __str__(self) -> str:
        return f"{self.name} -{self.level}" if self.level else self.name


def split_header(stream: bytes) -> bytes:
    """Returns the header that a gzip stream begins with (RFC 1952); empty if it begins with none that is whole."""
    if not stream.startswith(_GZIP_MAGIC) or len(stream) < _PLAIN_HEADER or stream[3] & 0xE0:
        return b""
    flags, at = stream[3], _PLAIN_HEADER
    if flags & 4:
        at += 2 + int.from_bytes(stream[at : at + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            at = stream.find(b"\0", at) + 1
            if not at:
                return b""
    at += 2 if flags & 2 else 0
    return stream[:at] if at <= min(len(stream), MAX_HEADER) else b""


class ToolFinder:
    """Finds the tools that made the blobs of an image, most often one for all."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._last: GzipTool | None = None
        """What made the last blob, and is tried first."""

    def find(self, blob: BinaryIO) -> tuple[GzipTool | None, bytes]:
        """Returns the tool that made a blob, as far as its first megabytes tell, and the header of its gzip stream.

        The tool is NONE for a blob that is not compressed, and None where no tool is found.
        """
        stored = blob.read(_READ_BYTES)
        header = split_header(stored)
        if not header:
            return (GzipTool(NONE, 0) if stored[257:262] == b"ustar" else None), b""
        engine, body = zlib.decompressobj(-15), stored[len(header) :]
        try:
            archive = engine.decompress(body, _ARCHIVE_BYTES)
        except zlib.error:
            return None, header
        is_whole = engine.eof
        if is_whole and len(engine.unused_data) != _TRAILER_BYTES:
            return None, header  # another stream follows
        candidates = list(_candidates(header))
        if self._last in candidates:
            candidates.insert(0, self._last)
        found = next((tool for tool in candidates if self._makes(tool, archive, body, is_whole)), None)
        self._last = found or self._last
        return found, header

    def _makes(self, tool: GzipTool, archive: bytes, body: bytes, is_whole: bool) -> bool:
        """Returns True if a tool makes `body`, a stream behind its header or the beginning of one, from the archive's beginning."""
        if not is_present(tool):
            return False
        first = max(_FIRST_BYTES, len(archive) * _FIRST_BYTES // max(len(body), 1))
        for size in (first, len(archive)) if first < len(archive) else (len(archive),):
            made = b"".join(compress(tool, b"", iter([archive[:size]]), self._work))
            if is_whole and size == len(archive):
                return made == body
            alike = max(len(made) - _END_BYTES, len(made) // 4)
            if made[:alike] != body[:alike]:
                return False
        return True


def _candidates(header: bytes) -> Iterator[GzipTool]:
    if header[4:8] == _PGZIP_TIME:
        names = [SKOPEO]
        yield GzipTool(SKOPEO, 0)
    else:
        names = [ZLIB] if header[9] == _UNKNOWN_SYSTEM else [ZLIB, GZIP, PIGZ]
    yield from (GzipTool(name, level) for level in _LEVELS for name in names)


def is_present(tool: GzipTool) -> bool:
    """Returns True if this host has a tool."""
    return tool.name in (NONE, ZLIB) or (tool.name in (GZIP, PIGZ, SKOPEO) and shutil.which(tool.name) is not None)


def compress(tool: GzipTool, header: bytes, archive: Iterator[bytes], work: Path) -> Iterator[bytes]:
    """Yields the blob that a tool makes of an archive that comes in pieces, with `header` in place of its own. Raises HostError."""
    if tool.name == NONE:
        yield from archive
        return
    yield header
    if tool.name == ZLIB:
        yield from _zlib(tool.level, archive)
    elif tool.name == SKOPEO:
        yield from _without_header(recompressed(archive, tool.level, work))
    else:
        yield from _without_header(_piped([tool.name, "-n", f"-{tool.level}", "-c"], archive))


def _zlib(level: int, archive: Iterator[bytes]) -> Iterator[bytes]:
    engine = zlib.compressobj(level, zlib.DEFLATED, -15)
    checksum = size = 0
    for piece in archive:
        checksum, size = zlib.crc32(piece, checksum), size + len(piece)
        if data := engine.compress(piece):
            yield data
    yield engine.flush() + checksum.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")


def _piped(command: list[str], archive: Iterator[bytes]) -> Iterator[bytes]:
    """Yields what a program makes of the archive on its standard input. Raises HostError, or what the archive raises."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    into, failed = process.stdin, list[BaseException]()

    def feed() -> None:
        try:
            with into:
                for piece in archive:
                    into.write(piece)
        except BrokenPipeError:
            pass  # the program has ended: its exit status says why
        except BaseException as error:
            failed.append(error)
        finally:
            if isinstance(archive, Generator):
                archive.close()

    thread = threading.Thread(target=feed, name="compress", daemon=True)
    thread.start()
    try:
        while data := process.stdout.read(_PIECE_BYTES):
            yield data
        thread.join()
        if failed:
            raise failed[0]
        if process.wait():
            raise HostError(f"{command[0]} failed: {process.stderr.read().decode('utf-8', 'replace').strip()}")
    finally:
        process.kill()
        process.wait()
        thread.join()
        process.stdout.close()
        process.stderr.close()


def _without_header(pieces: Iterator[bytes]) -> Iterator[bytes]:
    first = b""
    for piece in pieces:
        first += piece
        if len(first) >= _PLAIN_HEADER:
            break
    yield first[_PLAIN_HEADER:]
    yield from pieces
