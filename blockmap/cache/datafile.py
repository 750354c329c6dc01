"""Owns the file that holds the cache's slots, by a lock that one process has at a time.

Space comes back by punching holes, so a position keeps its meaning for as long as somebody may remember it.
"""

import errno
import fcntl
import logging
import os
from pathlib import Path

from blockmap.cache import slot as slots
from blockmap.errors import HostError
from blockmap.format import BLOCK
from blockmap.local import holes
from blockmap.local.paths import own

_log = logging.getLogger(__name__)


class DataFile:
    """The file `data` in a directory that this process owns until `close`; safe to share between threads.

    Raises HostError if the directory cannot be used, is another process's, or is on a file system without holes.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "data"
        self._owner, self.fd = self._open()

    def is_in_place(self) -> bool:
        """Returns True if the directory still has the file of this process, and the lock."""
        return _is_at(self.fd, self.path) and _is_at(self._owner, self._directory / "lock")

    def begin_anew(self) -> None:
        """Gives back the file and the lock, and makes empty ones in the directory, which is made if need be.

        Raises HostError where that cannot be; then it has no file, and reads nothing. Nobody may be writing.
        """
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._replace_by(null, null)
        owner, fd = self._open()
        os.ftruncate(fd, 0)
        self._replace_by(owner, fd)

    def end(self) -> int:
        """Returns the bytes of the file, rounded up to whole blocks."""
        return _end(self.fd)

    def read(self, position: int, length: int) -> bytes:
        """Returns the bytes from `position` on, fewer at the end of the file. Raises OSError."""
        return os.pread(self.fd, length, position)

    def write(self, position: int, head: bytes, content: memoryview, mask: int) -> None:
        """Writes a slot: its header, and those blocks of its content that `mask` has. Raises OSError."""
        blocks = slots.blocks_of(len(content))
        base = position + len(head)
        parts, at = [memoryview(head)], position
        block = 0
        while block < blocks:
            first = block
            while block < blocks and slots.has(mask, block):
                block += 1
            if block > first:
                parts.append(content[first * BLOCK : block * BLOCK])
                if block == blocks:
                    parts.append(memoryview(bytes(-len(content) % BLOCK)))
            else:
                block += 1
                _write_all(self.fd, parts, at)
                parts, at = [], base + block * BLOCK
        _write_all(self.fd, parts, at)

    def punch(self, position: int, length: int) -> bool:
        """Gives space back to the file system; returns True if that worked."""
        code = holes.punch(self.fd, position, length)
        if code:
            _log.warning("the cache's file %s could not free %d bytes: %s", self.path, length, os.strerror(code))
        return not code

    def empty(self) -> None:
        """Cuts the file to nothing, so that the next start begins at 0 as well; nobody may be writing."""
        try:
            os.ftruncate(self.fd, 0)
        except OSError as error:
            _log.warning("the cache's file %s could not be truncated: %s", self.path, error.strerror)

    def close(self) -> None:
        """Lets another process own the directory."""
        # A late writer must not hit a file that gets the same number.
        fd, self.fd = self.fd, -1
        os.close(fd)
        os.close(self._owner)

    def _open(self) -> tuple[int, int]:
        """Takes the directory for this process; returns the descriptors of its lock and its file."""
        directory = own(self._directory)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = _own(directory / "lock")
        except OSError as error:
            raise _unusable(directory, error) from error
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            os.close(owner)
            raise _unusable(directory, error) from error
        # Punches where nothing is yet, to learn whether the file system can.
        if code := holes.punch(fd, _end(fd), BLOCK):
            os.close(fd)
            os.close(owner)
            if code in holes.CANNOT:
                raise HostError(
                    f"the file system of the cache {directory} cannot punch holes: name a directory on ext4, xfs, btrfs "
                    "or tmpfs with --cache"
                )
            raise _unusable(directory, OSError(code, os.strerror(code)))
        return owner, fd

    def _replace_by(self, owner: int, fd: int) -> None:
        """Puts other files behind both descriptors, whose numbers readers know."""
        os.dup2(owner, self._owner, inheritable=False)
        os.dup2(fd, self.fd, inheritable=False)
        for each in {owner, fd}:
            os.close(each)


def _end(fd: int) -> int:
    return slots.blocks_of(os.fstat(fd).st_size) * BLOCK


def _is_at(fd: int, path: Path) -> bool:
    """Returns True if a path leads to an open file, or it cannot be said where it leads."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _write_all(fd: int, parts: list[memoryview], position: int) -> None:
    parts = [part for part in parts if part]
    while parts:
        written = os.pwritev(fd, parts, position)
        position += written
        while parts and written >= len(parts[0]):
            written -= len(parts[0])
            parts = parts[1:]
        if parts:
            parts = [parts[0][written:], *parts[1:]]


def _own(path: Path) -> int:
    """Takes the lock for this process. Raises HostError if another has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        # The parent, too, so that whoever finds it in use can tell whether that is still there.
        os.pwrite(fd, f"{os.getpid()} {os.getppid()}\n".encode(), 0)
    except BlockingIOError:
        owner = os.pread(fd, 64, 0).decode("ascii", "replace").partition(" ")[0].strip()
        os.close(fd)
        raise HostError(
            f"the cache {path.parent} is in use by process {owner or 'unknown'}: one server owns a cache, name another "
            "directory with --cache"
        ) from None
    except OSError as error:
        # The number of the owner is for messages only: a full disk is no reason to go without a cache.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            os.close(fd)
            raise
    return fd


def _unusable(directory: Path, error: OSError) -> HostError:
    return HostError(f"cannot use the cache {directory}: {error.strerror}; name another with --cache")
