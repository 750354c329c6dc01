"""Reads a plain directory as an image of one layer: the archive that a canonical tar of it would be.

Holes are not read. Those of 1 MiB or more are not in the archive either, which has such files as sparse members (GNU's version
1.0): the digest of the archive depends on where files have large holes.
"""

import errno
import heapq
import json
import os
import stat
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from blockmap.errors import ImageError
from blockmap.filesystem.member import Layer, Member, MemberKind, Members
from blockmap.image.pax import BLOCK, header
from blockmap.image.platforms import parse_platform
from blockmap.image.sparse import HOLE_BYTES, Segments, encode_map, stored_segments, zeros
from blockmap.image.tolerance import Oddities, Warn, fit

_PIECE_BYTES = 1 << 20
_KINDS = {
    stat.S_IFREG: MemberKind.FILE, stat.S_IFDIR: MemberKind.DIR, stat.S_IFLNK: MemberKind.SYMLINK, stat.S_IFCHR: MemberKind.CHAR,
    stat.S_IFBLK: MemberKind.BLOCK, stat.S_IFIFO: MemberKind.FIFO,
}  # fmt: skip
_NO_XATTRS = (errno.EOPNOTSUPP, errno.ENOSYS)
_HIDDEN_XATTR = (errno.EPERM, errno.EACCES, errno.ENODATA)
"""Errors of getxattr for an attribute that only root may read, or that has just been removed."""
_LEFT_OUT = b"security.selinux"
"""An attribute that is not imported: the label belongs to this host's policy, not to the files."""
_WHITEOUT = b".wh."


class Directory:
    """A directory (an ImageSource); it has no manifest, and a configuration with platform and diff_id only."""

    manifest: bytes | None = None
    index: bytes | None = None

    def __init__(self, path: Path, warn: Warn = lambda text: None) -> None:
        self.config = _configuration([])
        """The image configuration; it has the layer's diff_id once all members have been read."""
        self.layers: list[Layer] = [DirectoryLayer(path, self._finished, warn)]

    def need(self, first: int) -> None:
        """Does nothing, since the files are here."""

    def close(self) -> None:
        """Does nothing, since nothing is open between members."""

    def _finished(self, diff_id: bytes) -> None:
        self.config = _configuration([diff_id])


class DirectoryLayer:
    """The files below a directory, entries sorted by the bytes of their paths."""

    def __init__(self, path: Path, finished: Callable[[bytes], None], warn: Warn) -> None:
        self.size = 0
        self.chain = bytes(32)
        """SHA-256 of the directory as a tar archive, which is the diff_id; known when all members have been read."""
        self.progress: Callable[[int], None] = lambda count: None
        self.cpu_seconds = 0.0
        self._root = os.fsencode(path)
        self._finished = finished
        self._warn = warn

    def members(self, headers: Callable[[bytes], None]) -> Members:
        """Yields the members; the first name of a file, in order, is the file, and its other names are hard links."""
        state = sha256()

        def put(data: bytes) -> None:
            state.update(data)
            headers(data)

        odd = Oddities(os.fsdecode(self._root), self._warn)
        seen: dict[tuple[int, int], bytes] = {}
        for path, status in self._walk():
            kind = _KINDS.get(stat.S_IFMT(status.st_mode))
            if kind is None:
                self._warn(f"{os.fsdecode(self._full(path))} is a socket: left out, the program that listens makes it")
                continue
            if os.path.basename(path).startswith(_WHITEOUT):
                raise ImageError(
                    f"{os.fsdecode(self._full(path))} has the name of a whiteout, which no image can hold as a file: "
                    "rename or remove it"
                )
            member = self._member(path, status, kind, seen)
            data = self._data(member, status)
            segments = stored_segments(data, member.size)
            if segments is None:
                stored, hole = member.size, member.size + 1
                put(header(member))
            else:
                encoded, hole = encode_map(segments), HOLE_BYTES
                stored = len(encoded) + sum(length for _, length in segments)
                put(header(member, stored) + encoded)
            contents = self._contents(member, status, data, hole, state.update)
            yield fit(member, odd), contents
            for _ in contents:
                pass
            if padding := -stored % BLOCK:
                put(bytes(padding))
        put(bytes(2 * BLOCK))
        self.chain = state.digest()
        self._finished(self.chain)
        odd.tell()

    def second_reading(self) -> Members:
        """Yields the members again, by the same reader: there is no archive that another one could read."""
        return self.members(lambda data: None)

    def _full(self, path: bytes) -> bytes:
        return os.path.join(self._root, path) if path else self._root

    def _walk(self) -> Iterator[tuple[bytes, os.stat_result]]:
        waiting = [b""]  # a heap: what is below a directory sorts behind it, not always right behind
        try:
            while waiting:
                path = heapq.heappop(waiting)
                status = os.lstat(self._full(path)) if path else os.stat(self._root)
                yield path, status
                if stat.S_ISDIR(status.st_mode):
                    for name in os.listdir(self._full(path)):
                        heapq.heappush(waiting, os.path.join(path, name))
        except OSError as error:
            raise _unreadable(os.fsencode(error.filename or self._root), error) from error

    def _member(
        self, path: bytes, status: os.stat_result, kind: MemberKind, seen: dict[tuple[int, int], bytes]
    ) -> Member:
        full = self._full(path)
        seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
        mode, uid, gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
        if kind is not MemberKind.DIR and status.st_nlink > 1:
            first = seen.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                return Member(path, MemberKind.HARDLINK, mode, uid, gid, seconds, nanoseconds, target=first)
        try:
            target = os.readlink(full) if kind is MemberKind.SYMLINK else b""
            xattrs = _xattrs(full)
        except OSError as error:
            raise _unreadable(full, error) from error
        device = kind is MemberKind.CHAR or kind is MemberKind.BLOCK
        major, minor = (os.major(status.st_rdev), os.minor(status.st_rdev)) if device else (0, 0)
        size = status.st_size if kind is MemberKind.FILE else 0
        return Member(path, kind, mode, uid, gid, seconds, nanoseconds, size, target, major, minor, xattrs)

    def _data(self, member: Member, status: os.stat_result) -> Segments:
        """Returns the segments of a file that are no holes."""
        if member.kind is not MemberKind.FILE or status.st_blocks * 512 >= member.size:
            return [(0, member.size)] if member.size else []
        full = self._full(member.path)
        found: Segments = []
        try:
            with _open(full) as file:
                at = 0
                while at < member.size:
                    start = os.lseek(file.fileno(), at, os.SEEK_DATA)
                    at = min(os.lseek(file.fileno(), start, os.SEEK_HOLE), member.size)
                    found.append((start, at - start))
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data up to the end
                raise _unreadable(full, error) from error
        return found

    def _contents(
        self, member: Member, status: os.stat_result, data: Segments, hole: int, digest: Callable[[bytes], None]
    ) -> Iterator[bytes]:
        """Yields a file's content; the archive, and so its digest, has that without holes of at least `hole` bytes."""
        if member.kind is not MemberKind.FILE:
            return
        full = self._full(member.path)
        at = 0
        try:
            with _open(full) as file:
                for start, length in [*data, (member.size, 0)]:
                    for piece in zeros(start - at):
                        if start - at < hole:
                            digest(piece)
                        yield piece
                    at = start
                    file.seek(start)
                    while at < start + length and (piece := file.read(min(start + length - at, _PIECE_BYTES))):
                        at += len(piece)
                        digest(piece)
                        self.progress(len(piece))
                        yield piece
                    if at < start + length:
                        break
                now = os.fstat(file.fileno())
        except OSError as error:
            raise _unreadable(full, error) from error
        if at != member.size or _identity(now) != _identity(status):
            raise ImageError(f"{os.fsdecode(full)} changed while it was read: import a directory that nobody writes to")


def _open(full: bytes) -> BinaryIO:
    """Opens a file, which may have been replaced since: no link is followed, and no fifo waited for."""
    return open(os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _xattrs(full: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    try:
        names = sorted(os.fsencode(name) for name in os.listxattr(full, follow_symlinks=False))
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return found
        raise
    for name in names:
        if name == _LEFT_OUT:
            continue
        try:
            found[name] = os.getxattr(full, name, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _HIDDEN_XATTR:
                raise
    return found


def _configuration(diff_ids: list[bytes]) -> bytes:
    platform = parse_platform(None)
    document = {
        "architecture": platform.architecture,
        "config": {},
        "os": platform.os,
        "rootfs": {"diff_ids": [f"sha256:{diff_id.hex()}" for diff_id in diff_ids], "type": "layers"},
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _unreadable(full: bytes, error: OSError) -> ImageError:
    return ImageError(f"cannot read {os.fsdecode(full)}: {error.strerror or error}")
