"""Owns the file that holds the cache's slots, by a lock that one process has at a time.

Space comes back by punching holes, so a position keeps its meaning for as long as somebody may remember it.
"""

import ctypes
import errno
import fcntl
import logging
import os
from pathlib import Path

from blockmap.cache import slot as slots
from blockmap.errors import HostError
from blockmap.format import BLOCK

_log = logging.getLogger(__name__)

_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class DataFile:
    """The file `data` in a directory that this process owns until `close`; safe to share between threads.

    Raises HostError if the directory cannot be used, is another process's, or is on a file system without holes.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "data"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._owner = _own(directory / "lock")
        except OSError as error:
            raise _unusable(directory, error) from error
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            os.close(self._owner)
            raise _unusable(directory, error) from error
        # Punches where nothing is yet, to learn whether the file system can.
        if code := self._fallocate(_PUNCH_HOLE, self.end(), BLOCK):
            self.close()
            if code in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise HostError(
                    f"the file system of the cache {directory} cannot punch holes: name a directory on ext4, xfs, btrfs "
                    "or tmpfs with --cache"
                )
            raise _unusable(directory, OSError(code, os.strerror(code)))

    def end(self) -> int:
        """Returns the bytes of the file, rounded up to whole blocks."""
        return slots.blocks_of(os.fstat(self.fd).st_size) * BLOCK

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
        code = self._fallocate(_PUNCH_HOLE, position, length)
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

    def _fallocate(self, mode: int, position: int, length: int) -> int:
        """Returns 0, or the error's number."""
        while _libc.fallocate(self.fd, mode, position, length):
            code = ctypes.get_errno()
            if code != errno.EINTR:
                return code
        return 0


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
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
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
