"""Reads tar archives as a stream of members: ustar, pax and GNU, the forms that images come in.

Python's `tarfile` does the same at five times the cost per member, and hides bytes that have to be kept. Here every byte
that is not file content is passed on in order, so that headers and contents together are the archive: `skeleton` reads
these headers again, and says where the contents go. What a whiteout contains, which nothing keeps, counts as headers.

Formats: POSIX.1-2001 (pax, ustar), and the GNU extensions L, K, base-256 numbers and negative times. Where these leave a
choice, this module follows Go's archive/tar, with which container engines unpack: only files have content, whatever size
a header of another kind states, and a trailing slash makes a directory of type NUL only.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import NamedTuple

from blockmap.errors import ImageError
from blockmap.filesystem.member import Member, MemberKind, Members
from blockmap.filesystem.merge import is_whiteout
from blockmap.filesystem.paths import MAX_PATH, show
from blockmap.image import sparse
from blockmap.image.pax import (  # fmt: skip
    ACL,
    BLOCK,
    HEADER,
    SPARSE,
    check_sum,
    decimal,
    number,
    records,
    text_of,
    time_of,
    xattrs_of,
)

_MAX_EXTENDED = 1 << 20
"""Bytes of all extended headers of a member, or of the whole archive; an archive with more is refused as hostile."""
_MAX_LONG = MAX_PATH + 1 + BLOCK
"""Bytes of a path or target in a header of its own, with zeros behind it."""
_KINDS = {
    b"S": MemberKind.FILE,
    b"0": MemberKind.FILE, b"\0": MemberKind.FILE, b"7": MemberKind.FILE, b"1": MemberKind.HARDLINK,
    b"2": MemberKind.SYMLINK, b"3": MemberKind.CHAR,
    b"4": MemberKind.BLOCK, b"5": MemberKind.DIR, b"6": MemberKind.FIFO,
}  # fmt: skip
_ZEROS = bytes(BLOCK)
_PIECE_BYTES = 1 << 20


Odd = Callable[[bytes, str], None]
"""Takes the path of a member, and what is odd about it."""


def members(pieces: Iterator[bytes], headers: Callable[[bytes], None], odd: Odd = lambda path, what: None) -> Members:
    """Yields the members of an archive that comes in pieces. Raises ImageError if it is damaged or unsupported.

    `pieces` is closed with this iterator, and at once on an error, since a thread may wait behind it.
    """
    stream = _TarStream(pieces, headers)
    try:
        for member, stored, segments in _entries(stream, odd):
            left = stream.begin(stored)
            yield member, left if segments is None else sparse.expand(left, member.size, segments)
            stream.finish()
    finally:
        if isinstance(pieces, Generator):
            pieces.close()


class SkeletonPart(NamedTuple):
    """A member of an archive whose contents are elsewhere."""

    member: Member
    at: int
    """Bytes of headers before its content."""
    stored: int
    """Bytes of its content in the archive."""
    segments: sparse.Segments | None
    """What of it is in the archive where it is sparse; None for all of it."""


def skeleton(headers: bytes) -> Iterator[SkeletonPart]:
    """Yields the members of an archive, given what `members` passed on of it, and so checked. Raises ImageError if that is no
    archive."""
    at = 0

    def count(data: bytes) -> None:
        nonlocal at
        at += len(data)

    for member, stored, segments in _entries(_TarStream(iter([headers]), count), lambda path, what: None, checks=False):
        yield SkeletonPart(member, at, stored, segments)


def _entries(
    stream: "_TarStream", odd: Odd, checks: bool = True
) -> Iterator[tuple[Member, int, sparse.Segments | None]]:
    """Yields members with the bytes of their contents that are stored; whoever takes one reads these before the next.

    Unless it `checks`, headers are taken without a look at their checksums.
    """
    everywhere: dict[bytes, bytes] = {}
    everywhere_bytes = 0
    extended: dict[bytes, bytes] = {}
    extended_bytes = 0
    path = b""
    while True:
        block = stream.header()
        if len(block) < BLOCK or block == _ZEROS:
            if block.strip(b"\0"):
                raise ImageError("the archive ends in the middle of a header: it is truncated, get it again")
            if extended_bytes:
                raise ImageError("the archive ends between the headers of a member: it is truncated, get it again")
            if block and stream.header().strip(b"\0"):
                raise ImageError(
                    f"{show(path)}: a lone block of zeros stands behind it, and more follows, where two end an archive: damaged"
                )
            if stream.drain():
                odd(path, "is the last member, and there is more behind the end of the archive: ignored, as engines do")
            return
        fields = HEADER.unpack(block)
        if checks:
            check_sum(block, fields[6])
        kind, size = fields[7], number(fields[4], "size")
        if size < 0:
            raise ImageError(f"{show(text_of(fields[0]))}: its size is negative: the archive is damaged")
        if kind == b"g":
            everywhere_bytes += BLOCK + size
            everywhere.update(records(stream.extension(size, everywhere_bytes)))
            continue
        if kind in (b"x", b"L", b"K"):
            extended_bytes += BLOCK + size
            if kind != b"x" and size > _MAX_LONG:
                raise ImageError(f"a header holds a path or target of {size} bytes: {MAX_PATH} are allowed")
            data = stream.extension(size, extended_bytes)
            if kind == b"x":
                extended.update(records(data))
            else:
                extended[b"path" if kind == b"L" else b"linkpath"] = data.rstrip(b"\0")
            continue
        own = {**everywhere, **extended} if everywhere or extended else {}
        member = _member(fields, size, own, odd)
        path, stored = member.path, member.size
        segments = None
        if kind == b"S" or (own and member.kind is MemberKind.FILE):
            member, stored, segments = _sparse(stream, block, member, own)
        extended = {}
        extended_bytes = 0
        if stored and is_whiteout(member.path):
            stream.pass_on(stored)
            yield replace(member, size=0), 0, None
        else:
            yield member, stored, segments
        if padding := -stored % BLOCK:
            # Fewer may come: umoci leaves out the padding of the last content. A truncated layer has another digest.
            stream.header(padding)


def _sparse(
    stream: "_TarStream", block: bytes, member: Member, extended: dict[bytes, bytes]
) -> tuple[Member, int, sparse.Segments | None]:
    """Returns a member with the size that it has when it is expanded, the bytes that are stored, and where they belong."""
    taken = 0

    def more() -> bytes:
        nonlocal taken
        taken += BLOCK
        return stream.extension(BLOCK, taken)

    try:
        if block[156:157] == b"S":
            found, stored = sparse.old_map(block, more), member.size
        else:
            read = sparse.pax_map(extended, more)
            if read is None:
                return member, member.size, None
            found, stored = read, member.size - taken
        size, segments = found
        sparse.check(size, stored, segments)
    except ImageError as error:
        raise ImageError(f"{show(member.path)}: {error}") from error
    return replace(member, size=size), stored, segments


class _TarStream:
    """Reads bytes from an iterator of pieces, and passes those on that are not content."""

    def __init__(self, pieces: Iterator[bytes], headers: Callable[[bytes], None]) -> None:
        self._pieces = pieces
        self._headers = headers
        self._piece: bytes = b""
        self._at = 0
        self._left = 0  # bytes of content left of the present member
        self._member = 0  # number of the present member: an old iterator must not take the next one's content

    def header(self, count: int = BLOCK) -> bytes:
        """Takes the next `count` bytes, which are not content; fewer only at the end."""
        end = self._at + count
        data = self._piece[self._at : end]
        self._at = min(end, len(self._piece))
        while len(data) < count:
            if not self._more():
                break
            more = self._piece[: count - len(data)]
            self._at = len(more)
            data += more
        self._headers(data)
        return data

    def extension(self, size: int, total: int) -> bytes:
        """Takes an extended header, unless all of its member take too much with it. Raises ImageError."""
        if total > _MAX_EXTENDED:
            raise ImageError(
                f"extended headers of {total} bytes: {_MAX_EXTENDED} at most are read; the archive is damaged"
            )
        data = self.header(size + -size % BLOCK)
        if len(data) < size + -size % BLOCK:
            raise ImageError("the archive ends in the middle of a header: it is truncated, get it again")
        return data[:size]

    def pass_on(self, size: int) -> None:
        """Takes content as if it were headers. Raises ImageError if the archive ends within it."""
        for at in range(0, size, _PIECE_BYTES):
            count = min(_PIECE_BYTES, size - at)
            if len(self.header(count)) < count:
                raise ImageError("the archive ends in the middle of a file: it is truncated, get it again")

    def begin(self, size: int) -> Iterator[bytes]:
        self._left = size
        self._member += 1
        return self._contents(self._member)

    def finish(self) -> None:
        """Skips the rest of the present member's content."""
        for _ in self._contents(self._member):
            pass

    def drain(self) -> bool:
        """Reads the rest; returns True if any of it is not zero."""
        rest = self._piece[self._at :]
        found = False
        while rest:
            self._headers(rest)
            found = found or rest.count(0) < len(rest)
            rest = self._piece if self._more() else b""
        self._at = len(self._piece)
        return found

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


def _member(fields: tuple[bytes, ...], size: int, extended: dict[bytes, bytes], odd: Odd) -> Member:
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
        # An empty value cancels a global one, so that the header's own field counts.
        path = extended.get(SPARSE + b"name") or extended.get(b"path") or path
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
        if any(key.startswith(ACL) for key in extended):
            odd(path, "has an ACL as text: left out, as engines do, who take those among the extended attributes")
    if kind is None:
        raise ImageError(
            f"{show(path)}: the member is of type {kind_byte.decode('latin-1')!r}, which is not supported: leave it out"
        )
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
