"""Reads the members of a layer with Python's tarfile, so that comparisons do not rest on the importer's reader of archives."""

import base64
import binascii
import tarfile
from collections.abc import Generator, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from itertools import chain
from typing import IO, Any, Self, TypeVar, cast
from urllib.parse import unquote_to_bytes

from blockmap.errors import ImageError
from blockmap.filesystem.member import Member, MemberKind, Members

_PIECE_BYTES = 1 << 20
_MAX_READ = 2 << 20
"""Bytes that tarfile asks for at most, in one piece, for any header that the importer accepts."""
_TRAILER = bytes(4 * tarfile.BLOCKSIZE)
"""Zeros behind the end: archives may lack their trailer, and the padding of their last file."""
_KINDS = {
    tarfile.LNKTYPE: MemberKind.HARDLINK, tarfile.SYMTYPE: MemberKind.SYMLINK, tarfile.CHRTYPE: MemberKind.CHAR,
    tarfile.BLKTYPE: MemberKind.BLOCK, tarfile.DIRTYPE: MemberKind.DIR, tarfile.FIFOTYPE: MemberKind.FIFO,
}  # fmt: skip
_XATTR, _LIBARCHIVE = "SCHILY.xattr.", "LIBARCHIVE.xattr."


class _Info(tarfile.TarInfo):
    """A member whose header has a prefix only in the form of ustar: others have times there."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        return _without_prefix(super().frombuf(buf, encoding, errors), buf, encoding, errors)

    @classmethod
    def _frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str, **more: Any) -> Self:
        """Does what `frombuf` does where Python reads members without it, as its later releases do."""
        made: Self = super()._frombuf(buf, encoding, errors, **more)  # type: ignore[misc]
        return _without_prefix(made, buf, encoding, errors)


_InfoT = TypeVar("_InfoT", bound=tarfile.TarInfo)


def _without_prefix(info: _InfoT, buf: bytes | bytearray, encoding: str, errors: str) -> _InfoT:
    if buf[257:265] != b"ustar\x0000":
        info.name = bytes(buf[:100]).split(b"\0", 1)[0].decode(encoding, errors)
    return info


class _ForwardFile:
    """Makes pieces a file that tarfile can read, and skip forward in."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = chain(pieces, [_TRAILER])
        self._piece = b""
        self._at = self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        while self._position < position and self._next(position - self._position):
            pass
        return self._position

    def read(self, count: int) -> bytes:
        if count > _MAX_READ:
            raise ImageError(f"a header of {count} bytes: the archive is damaged")
        found = [self._next(count)]
        while found[-1] and (count := count - len(found[-1])):
            found.append(self._next(count))
        return b"".join(found)

    def _next(self, count: int) -> bytes:
        if self._at == len(self._piece):
            self._piece, self._at = next(self._pieces, b""), 0
        data = self._piece[self._at : self._at + count]
        self._at += len(data)
        self._position += len(data)
        return data


def tarfile_members(pieces: Iterator[bytes]) -> Members:
    """Yields the members of an archive that comes in pieces. Raises ImageError; `pieces` is closed with this iterator."""
    file = _ForwardFile(pieces)
    try:
        with tarfile.TarFile(
            fileobj=cast(IO[bytes], file), tarinfo=_Info, encoding="utf-8", errors="surrogateescape", ignore_zeros=False
        ) as archive:
            while (info := archive.next()) is not None:
                yield _member(info), _contents(archive, info)
                archive.members.clear()  # type: ignore[attr-defined] # it would keep all
        while file.read(_PIECE_BYTES):
            pass
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, InvalidOperation) as error:
        raise ImageError(f"Python's tarfile cannot read a layer: {error}") from error
    finally:
        if isinstance(pieces, Generator):
            pieces.close()


def _contents(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    file = archive.extractfile(info) if info.isreg() else None
    while file is not None and (data := file.read(_PIECE_BYTES)):
        yield data


def _member(info: tarfile.TarInfo) -> Member:
    kind = MemberKind.FILE if info.isreg() else _KINDS.get(info.type)
    path = _relative(info.name)
    if kind is None:
        raise ImageError(f"{info.name!r} is of a type that tarfile does not know: {info.type!r}")
    nanoseconds = int(Decimal(info.pax_headers.get("mtime") or int(info.mtime)).scaleb(9))
    device = kind in (MemberKind.CHAR, MemberKind.BLOCK)
    return Member(
        path, kind, info.mode & 0o7777, info.uid, info.gid, nanoseconds // 10**9, nanoseconds % 10**9,
        info.size if kind is MemberKind.FILE else 0,
        {MemberKind.HARDLINK: _relative, MemberKind.SYMLINK: _bytes}[kind](info.linkname) if info.islnk() or info.issym() else b"",
        info.devmajor if device else 0,
        info.devminor if device else 0,
        _xattrs(info.pax_headers),
    )  # fmt: skip


def _xattrs(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    found = {}
    for key, value in headers.items():
        if key.startswith(_LIBARCHIVE):
            try:
                found[unquote_to_bytes(key.removeprefix(_LIBARCHIVE))] = base64.b64decode(
                    value + "=" * (-len(value) % 4)
                )
            except binascii.Error as error:
                raise ImageError(f"the attribute {key} is not base64") from error
    return found | {
        _bytes(key.removeprefix(_XATTR)): _bytes(value) for key, value in headers.items() if key.startswith(_XATTR)
    }


def _relative(name: str) -> bytes:
    return b"/".join(part for part in _bytes(name).split(b"/") if part not in (b"", b"."))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
