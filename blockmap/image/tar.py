"""Reads tar archives as a stream of members: ustar, pax and GNU, the forms that images come in.

Python's `tarfile` does the same at five times the cost per member, and hides bytes that have to be kept. Here every byte
that is not file content is passed on in order, so that headers and contents together are the archive.

Formats: POSIX.1-2001 (pax, ustar), and the GNU extensions L, K, base-256 numbers and negative times. Where these leave a
choice, this module follows Go's archive/tar, with which container engines unpack: only files have content, whatever size
a header of another kind states, and a trailing slash makes a directory of type NUL only.
"""

from collections.abc import Callable, Generator, Iterator

from blockmap.errors import ImageError
from blockmap.filesystem.member import Member, MemberKind, Members
from blockmap.image.pax import (  # fmt: skip
    BLOCK,
    HEADER,
    check_sum,
    check_supported,
    decimal,
    number,
    records,
    show,
    text_of,
    time_of,
    xattrs_of,
)

_MAX_EXTENDED = 1 << 20
"""Bytes of all extended headers of a member, or of the whole archive; an archive with more is refused as hostile."""
_KINDS = {
    b"0": MemberKind.FILE, b"\0": MemberKind.FILE, b"7": MemberKind.FILE, b"1": MemberKind.HARDLINK,
    b"2": MemberKind.SYMLINK, b"3": MemberKind.CHAR,
    b"4": MemberKind.BLOCK, b"5": MemberKind.DIR, b"6": MemberKind.FIFO,
}  # fmt: skip
_ZEROS = bytes(BLOCK)


def members(pieces: Iterator[bytes], headers: Callable[[bytes], None]) -> Members:
    """Yields the members of an archive that comes in pieces. Raises ImageError if it is damaged or unsupported.

    `pieces` is closed with this iterator, and at once on an error, since a thread may wait behind it.
    """
    try:
        yield from _members(_TarStream(pieces), headers)
    finally:
        if isinstance(pieces, Generator):
            pieces.close()


def _members(stream: "_TarStream", headers: Callable[[bytes], None]) -> Members:
    everywhere: dict[bytes, bytes] = {}
    everywhere_bytes = 0
    extended: dict[bytes, bytes] = {}
    extended_bytes = 0
    while True:
        block = stream.take(BLOCK)
        headers(block)
        if len(block) < BLOCK or block == _ZEROS:
            if block.strip(b"\0"):
                raise ImageError("the archive ends in the middle of a header: it is truncated, get it again")
            if extended_bytes:
                raise ImageError("the archive ends between the headers of a member: it is truncated, get it again")
            stream.drain(headers)
            return
        fields = HEADER.unpack(block)
        check_sum(block, fields[6])
        kind, size = fields[7], number(fields[4], "size")
        if size < 0:
            raise ImageError(f"{show(text_of(fields[0]))}: its size is negative: the archive is damaged")
        if kind == b"g":
            everywhere_bytes += BLOCK + size
            everywhere.update(records(_extension(stream, size, everywhere_bytes, headers)))
            continue
        if kind in (b"x", b"L", b"K"):
            extended_bytes += BLOCK + size
            data = _extension(stream, size, extended_bytes, headers)
            if kind == b"x":
                extended.update(records(data))
            else:
                extended[b"path" if kind == b"L" else b"linkpath"] = data.rstrip(b"\0")
            continue
        member = _member(fields, size, {**everywhere, **extended} if everywhere or extended else {})
        extended = {}
        extended_bytes = 0
        left = stream.begin(member.size)
        yield member, left
        stream.finish()
        if padding := -member.size % BLOCK:
            # Fewer may come: umoci leaves out the padding of the last content. A truncated layer has another digest.
            headers(stream.take(padding))


class _TarStream:
    """Reads bytes from an iterator of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece: bytes = b""
        self._at = 0
        self._left = 0  # bytes of content left of the present member
        self._member = 0  # number of the present member: an old iterator must not take the next one's content

    def take(self, count: int) -> bytes:
        """Takes the next `count` bytes, fewer only at the end."""
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
        self._member += 1
        return self._contents(self._member)

    def finish(self) -> None:
        """Skips the rest of the present member's content."""
        for _ in self._contents(self._member):
            pass

    def drain(self, headers: Callable[[bytes], None]) -> None:
        headers(self._piece[self._at :])
        while self._more():
            headers(self._piece)
        self._at = len(self._piece)

    def _contents(self, number: int) -> Iterator[bytes]:
        while self._left and number == self._member:
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
    path = text_of(name)
    if magic == b"ustar\x0000" and prefix[0]:
        path = text_of(prefix) + b"/" + path
    target = text_of(link)
    kind = _KINDS.get(kind_byte)
    seconds, nanoseconds = number(mtime, "time"), 0
    user, group = number(uid, "user"), number(gid, "group")
    xattrs: dict[bytes, bytes] = {}
    if extended:
        check_supported(extended, path)
        # An empty value cancels a global one, so that the header's own field counts.
        path = extended.get(b"path") or path
        target = extended.get(b"linkpath") or target
        if value := extended.get(b"mtime"):
            seconds, nanoseconds = time_of(value)
        if value := extended.get(b"uid"):
            user = decimal(value)
        if value := extended.get(b"gid"):
            group = decimal(value)
        if value := extended.get(b"size"):
            size = decimal(value)
        xattrs = xattrs_of(extended, path)
    if kind is None:
        what = "sparse" if kind_byte == b"S" else f"of type {kind_byte.decode('latin-1')!r}"
        raise ImageError(f"{show(path)}: the member is {what}, which is not supported: make the image without it")
    if kind_byte == b"\0" and path.endswith(b"/"):
        kind = MemberKind.DIR
    if size < 0:
        raise ImageError(f"{show(path)}: its size is negative: the archive is damaged")
    device = kind is MemberKind.CHAR or kind is MemberKind.BLOCK
    return Member(
        normalise(path),
        kind,
        number(mode, "mode") & 0o7777,
        user,
        group,
        seconds,
        nanoseconds,
        size if kind is MemberKind.FILE else 0,
        _target(kind, target, path),
        number(major, "device") if device else 0,
        number(minor, "device") if device else 0,
        xattrs,
    )


def normalise(path: bytes) -> bytes:
    """Returns a member's path relative to the root. Raises ImageError if it leads out of it."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise ImageError(f"{show(path)}: the path climbs out of the image with '..': refused")
    if b"\0" in path:
        raise ImageError(f"{show(path)}: the path holds a zero byte: the archive is damaged")
    return b"/".join(parts)


def _target(kind: MemberKind, target: bytes, path: bytes) -> bytes:
    if kind is MemberKind.SYMLINK:
        if b"\0" in target:
            raise ImageError(f"{show(path)}: the target holds a zero byte: the archive is damaged")
        return target
    if kind is not MemberKind.HARDLINK:
        return b""
    normal = normalise(target)
    if not normal:
        raise ImageError(f"{show(path)}: is a hard link to nothing: the archive is damaged")
    return normal


def _extension(stream: _TarStream, size: int, total: int, headers: Callable[[bytes], None]) -> bytes:
    if total > _MAX_EXTENDED:
        raise ImageError(f"extended headers of {total} bytes: {_MAX_EXTENDED} at most are read; the archive is damaged")
    data = stream.take(size + -size % BLOCK)
    if len(data) < size + -size % BLOCK:
        raise ImageError("the archive ends in the middle of a header: it is truncated, get it again")
    headers(data)
    return data[:size]
