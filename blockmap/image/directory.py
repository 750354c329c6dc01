"""A plain directory as an image of one layer."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from blockmap.errors import ImageError
from blockmap.image.member import Kind, Layer, Member, Members
from blockmap.image.platforms import parse_platform

_PIECE_BYTES = 1 << 20
_KINDS = {
    stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIR, stat.S_IFLNK: Kind.SYMLINK, stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK, stat.S_IFIFO: Kind.FIFO,
}  # fmt: skip


class Directory:
    """A directory (a Source); it has no manifest, and a configuration that says no more than the platform."""

    manifest: bytes | None = None
    index: bytes | None = None

    def __init__(self, path: Path) -> None:
        platform = parse_platform(None)
        self.config = json.dumps(
            {
                "architecture": platform.architecture,
                "config": {},
                "os": platform.os,
                "rootfs": {"diff_ids": [], "type": "layers"},
            },
            sort_keys=True,
            separators=(",", ":"),
        ).encode()
        self.layers: list[Layer] = [DirectoryLayer(path)]

    def close(self) -> None:
        """Nothing is open between members."""


class DirectoryLayer:
    """The files below a directory, entries sorted by the bytes of their paths."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self.chain = bytes(32)
        """Taken over attributes and contents: known when all members have been read."""
        self.progress: Callable[[int], None] = lambda count: None
        self.cpu_seconds = 0.0
        self._root = os.fsencode(path)

    def members(self, headers: Callable[[bytes], None]) -> Members:
        state = sha256(b"blockmap directory 1\n")
        seen: dict[tuple[int, int], bytes] = {}
        for path, status in self._walk():
            kind = _KINDS.get(stat.S_IFMT(status.st_mode))
            if kind is None:
                continue  # a socket is made by the program that listens on it
            member = self._member(path, status, kind, seen)
            line = _describe(member)
            state.update(line)
            headers(line)
            yield member, self._contents(member, state.update)
        self.chain = state.digest()

    def _walk(self) -> Iterator[tuple[bytes, os.stat_result]]:
        try:
            yield b"", os.stat(self._root)
            waiting = [b""]
            while waiting:
                above = waiting.pop()
                below = []
                for name in sorted(os.listdir(os.path.join(self._root, above)), reverse=False):
                    path = os.path.join(above, name)
                    status = os.lstat(os.path.join(self._root, path))
                    yield path, status
                    if stat.S_ISDIR(status.st_mode):
                        below.append(path)
                waiting.extend(reversed(below))
        except OSError as error:
            raise ImageError(f"cannot read {os.fsdecode(error.filename or self._root)}: {error.strerror}") from error

    def _member(self, path: bytes, status: os.stat_result, kind: Kind, seen: dict[tuple[int, int], bytes]) -> Member:
        full = os.path.join(self._root, path)
        seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
        mode, uid, gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
        if kind is not Kind.DIR and status.st_nlink > 1:
            first = seen.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                return Member(path, Kind.HARDLINK, mode, uid, gid, seconds, nanoseconds, target=first)
        try:
            target = os.readlink(full) if kind is Kind.SYMLINK else b""
            names = [os.fsencode(name) for name in os.listxattr(full, follow_symlinks=False)]
            xattrs = {
                name: os.getxattr(full, name, follow_symlinks=False)
                for name in sorted(names)
                if name != b"security.selinux"
            }
        except OSError as error:
            raise ImageError(f"cannot read {os.fsdecode(full)}: {error.strerror}") from error
        device = kind is Kind.CHAR or kind is Kind.BLOCK
        major, minor = (os.major(status.st_rdev), os.minor(status.st_rdev)) if device else (0, 0)
        size = status.st_size if kind is Kind.FILE else 0
        return Member(path, kind, mode, uid, gid, seconds, nanoseconds, size, target, major, minor, xattrs)

    def _contents(self, member: Member, digest: Callable[[bytes], None]) -> Iterator[bytes]:
        if member.kind is not Kind.FILE:
            return
        full = os.path.join(self._root, member.path)
        left = member.size
        try:
            with open(full, "rb") as file:
                while data := file.read(_PIECE_BYTES):
                    left -= len(data)
                    if left < 0:
                        break
                    digest(data)
                    self.progress(len(data))
                    yield data
        except OSError as error:
            raise ImageError(f"cannot read {os.fsdecode(full)}: {error.strerror}") from error
        if left:
            raise ImageError(f"{os.fsdecode(full)} changed while it was read: import a directory that nobody writes to")


def _describe(member: Member) -> bytes:
    """A member without its contents, as one unambiguous line."""
    fields: list[object] = [
        member.path.hex(), member.kind.value, member.mode, member.uid, member.gid, member.mtime_s, member.mtime_ns,
        member.size, member.target.hex(), member.major, member.minor,
        sorted((name.hex(), value.hex()) for name, value in member.xattrs.items()),
    ]  # fmt: skip
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"
