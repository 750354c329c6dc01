"""Reads tar archives as a stream of members: ustar, pax and GNU, the forms that images come in.

Python's `tarfile` does the same at five times the cost per member, and hides bytes that have to be kept. Every byte that
is not a file's content is handed on, in order, so that headers and contents together are the archive.

Formats: POSIX.1-2001 (pax, ustar), and the GNU extensions L, K, base-256 numbers and negative times.
"""

import base64
import binascii
import struct
from collections.abc import Callable, Iterator
from urllib.parse import unquote_to_bytes

from blockmap.errors import ImageError
from blockmap.image.member import Kind, Member, Members

_BLOCK = 512
_MAX_EXTENDED = 1 << 20
"""Bytes of a pax header or a long name: an archive that wants more is hostile."""
_KINDS = {
    b"0": Kind.FILE, b"\0": Kind.FILE, b"7": Kind.FILE, b"1": Kind.HARDLINK, b"2": Kind.SYMLINK, b"3": Kind.CHAR,
    b"4": Kind.BLOCK, b"5": Kind.DIR, b"6": Kind.FIFO,
}  # fmt: skip
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s64s8s8s155s12x")
_ZEROS = bytes(_BLOCK)
_XATTR = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."


def members(pieces: Iterator[bytes], headers: Callable[[bytes], None]) -> Members:
    """The members of an archive that comes in pieces; ImageError for what is damaged or unsupported."""
    stream = _Stream(pieces)
    everywhere: dict[bytes, bytes] = {}
    extended: dict[bytes, bytes] = {}
    while True:
        block = stream.take(_BLOCK)
        headers(block)
        if len(block) < _BLOCK or block == _ZEROS:
            if block.strip(b"\0"):
                raise ImageError("the archive ends in the middle of a header: it is truncated, get it again")
            stream.drain(headers)
            return
        fields = _HEADER.unpack(block)
        _check_sum(block, fields[6])
        kind, size = fields[7], _number(fields[4], "size")
        if size < 0:
            raise ImageError(f"{_show(_text(fields[0]))}: its size is negative: the archive is damaged")
        if kind in (b"x", b"g", b"L", b"K"):
            data = _extension(stream, size, headers)
            if kind == b"x":
                extended.update(_records(data))
            elif kind == b"g":
                everywhere.update(_records(data))
            else:
                extended[b"path" if kind == b"L" else b"linkpath"] = data.rstrip(b"\0")
            continue
        member = _member(fields, size, {**everywhere, **extended} if everywhere or extended else {})
        extended = {}
        left = stream.begin(member.size)
        yield member, left
        stream.finish()
        padding = -member.size % _BLOCK
        if padding:
            data = stream.take(padding)
            if len(data) < padding:
                raise ImageError("the archive ends in the middle of a file: it is truncated, get it again")
            headers(data)


class _Stream:
    """Bytes out of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece: bytes = b""
        self._at = 0
        self._left = 0  # content of the present member

    def take(self, count: int) -> bytes:
        """The next bytes, fewer only at the end."""
        end = self._at + count
        data = self._piece[self._at : end]
        self._at = min(end, len(self._piece))
        while len(data) < count:
            if not self._more():
                break
            more = self._piece[: count - len(data)]
            self._at = len(more)
            data += more
        return data

    def begin(self, size: int) -> Iterator[bytes]:
        self._left = size
        return self._contents()

    def finish(self) -> None:
        """Passes over what was not read of the present member."""
        for _ in self._contents():
            pass

    def drain(self, headers: Callable[[bytes], None]) -> None:
        headers(self._piece[self._at :])
        while self._more():
            headers(self._piece)
        self._at = len(self._piece)

    def _contents(self) -> Iterator[bytes]:
        while self._left:
            if self._at == len(self._piece) and not self._more():
                raise ImageError("the archive ends in the middle of a file: it is truncated, get it again")
            end = min(self._at + self._left, len(self._piece))
            data = self._piece[self._at : end]
            self._at = end
            self._left -= len(data)
            yield data

    def _more(self) -> bool:
        self._piece, self._at = next(self._pieces, b""), 0
        return bool(self._piece)


def _member(fields: tuple[bytes, ...], size: int, extended: dict[bytes, bytes]) -> Member:
    name, mode, uid, gid, _, mtime, _, kind_byte, link, magic, _, major, minor, prefix = fields
    path = _text(name)
    if magic == b"ustar\x0000" and prefix[0]:
        path = _text(prefix) + b"/" + path
    target = _text(link)
    kind = _KINDS.get(kind_byte)
    seconds, nanoseconds = _number(mtime, "time"), 0
    user, group = _number(uid, "user"), _number(gid, "group")
    xattrs: dict[bytes, bytes] = {}
    if extended:
        path = extended.get(b"path", path)
        target = extended.get(b"linkpath", target)
        if b"mtime" in extended:
            seconds, nanoseconds = _time(extended[b"mtime"])
        user = _decimal(extended[b"uid"]) if b"uid" in extended else user
        group = _decimal(extended[b"gid"]) if b"gid" in extended else group
        size = _decimal(extended[b"size"]) if b"size" in extended else size
        xattrs = _xattrs(extended, path)
    if kind is None:
        what = "sparse" if kind_byte == b"S" else f"of type {kind_byte.decode('latin-1')!r}"
        raise ImageError(f"{_show(path)}: the member is {what}, which is not supported: make the image without it")
    if kind is Kind.FILE and kind_byte != b"7" and path.endswith(b"/"):
        kind = Kind.DIR
    if size < 0:
        raise ImageError(f"{_show(path)}: its size is negative: the archive is damaged")
    device = kind is Kind.CHAR or kind is Kind.BLOCK
    return Member(
        normalise(path),
        kind,
        _number(mode, "mode") & 0o7777,
        user,
        group,
        seconds,
        nanoseconds,
        size if kind is Kind.FILE else 0,
        _target(kind, target, path),
        _number(major, "device") if device else 0,
        _number(minor, "device") if device else 0,
        xattrs,
    )


def normalise(path: bytes) -> bytes:
    """A member's path relative to the root; ImageError where it climbs out of it."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise ImageError(f"{_show(path)}: the path climbs out of the image with '..': refused")
    if b"\0" in path:
        raise ImageError(f"{_show(path)}: the path holds a zero byte: the archive is damaged")
    return b"/".join(parts)


def _target(kind: Kind, target: bytes, path: bytes) -> bytes:
    if kind is Kind.SYMLINK:
        if b"\0" in target:
            raise ImageError(f"{_show(path)}: the target holds a zero byte: the archive is damaged")
        return target
    if kind is not Kind.HARDLINK:
        return b""
    normal = normalise(target)
    if not normal:
        raise ImageError(f"{_show(path)}: is a hard link to nothing: the archive is damaged")
    return normal


def _extension(stream: _Stream, size: int, headers: Callable[[bytes], None]) -> bytes:
    if size > _MAX_EXTENDED:
        raise ImageError(
            f"an extended header of {size} bytes: {_MAX_EXTENDED} at most are read; the archive is damaged"
        )
    data = stream.take(size + -size % _BLOCK)
    if len(data) < size:
        raise ImageError("the archive ends in the middle of a header: it is truncated, get it again")
    headers(data)
    return data[:size]


def _records(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax header: length, space, key, =, value, newline."""
    found = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space + 1 or end > len(data) or data[end - 1 : end] != b"\n" or not equals:
            raise ImageError("a pax header is damaged: get the archive again")
        if key.startswith(b"GNU.sparse."):
            raise ImageError("a member is sparse (GNU.sparse), which is not supported: make the image without --sparse")
        found[key] = value
        at = end
    return found


def _xattrs(extended: dict[bytes, bytes], path: bytes) -> dict[bytes, bytes]:
    found = {}
    for key, value in extended.items():
        if key.startswith(_XATTR):
            found[key[len(_XATTR) :]] = value
        elif key.startswith(_LIBARCHIVE):
            try:
                padded = value + b"=" * (-len(value) % 4)
                found.setdefault(unquote_to_bytes(key[len(_LIBARCHIVE) :]), base64.b64decode(padded, validate=True))
            except binascii.Error as error:
                raise ImageError(
                    f"{_show(path)}: an extended attribute is not base64: the archive is damaged"
                ) from error
        elif key.startswith(b"SCHILY.acl."):
            raise ImageError(
                f"{_show(path)}: has an ACL as text, which is not supported: archive it with --xattrs instead"
            )
    return found


def _number(field: bytes, what: str) -> int:
    """An octal number, or base-256 where the first bit is set, which may be negative."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") - (1 << 8 * len(field) - 1)
        return value - (1 << 8 * len(field) - 1) if field[0] & 0x40 else value
    text = field.split(b"\0", 1)[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise ImageError(f"a header's {what} is {field!r}, not a number: the archive is damaged") from None


def _decimal(text: bytes) -> int:
    if not text.removeprefix(b"-").isdigit() or len(text) > 20:
        raise ImageError(f"a pax header has {text[:40]!r} where a number is expected: the archive is damaged")
    return int(text)


def _time(text: bytes) -> tuple[int, int]:
    """Seconds and the nanoseconds after them; a fraction of a negative time counts away from zero."""
    whole, _, fraction = text.partition(b".")
    seconds = _decimal(whole)
    if fraction and not fraction.isdigit():
        raise ImageError(f"a pax header has the time {text[:40]!r}: the archive is damaged")
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    if whole.startswith(b"-") and nanoseconds:
        return seconds - 1, 1_000_000_000 - nanoseconds
    return seconds, nanoseconds


def _check_sum(block: bytes, field: bytes) -> None:
    expected = _number(field, "checksum")
    unsigned = sum(block) - sum(field) + 8 * 32
    if unsigned != expected:
        high = sum(byte > 127 for byte in block[:148] + block[156:])
        if unsigned - 256 * high != expected:
            raise ImageError("a header's checksum is wrong: the archive is damaged, or is none")


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _show(path: bytes) -> str:
    return repr(path.decode("utf-8", "backslashreplace"))
