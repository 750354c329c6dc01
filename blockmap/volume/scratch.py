"""The bytes of one layer of a clone: a sparse file with the volume's own offsets."""

import errno
import fcntl
import os
from pathlib import Path

from blockmap.durable import Buffer, sync_directory
from blockmap.errors import DiskFull, HostError
from blockmap.local import holes

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ZEROS = bytes(1 << 20)


class ScratchFile:
    """A layer's file; safe to share between threads. All methods but `punch` raise DiskFull or HostError."""

    def __init__(self, path: Path) -> None:
        """Makes an absent file; it is durable with the first `sync`, as is its entry in the directory.

        While it is open it has a shared lock, as `is_in_use` sees.
        """
        self._path = path
        self._fd = -1
        self._new = True
        """True until the entry is surely durable: a process that made it may have ended before."""
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_SH)
        except OSError as error:
            raise local_error(path, error) from error

    def read(self, buf: memoryview, offset: int) -> None:
        """Fills a buffer with bytes that were written."""
        try:
            done = os.preadv(self._fd, (buf,), offset)
            while done < len(buf):
                more = os.preadv(self._fd, (buf[done:],), offset + done)
                if not more:
                    raise HostError(
                        f"{self._path} ends before byte {offset + len(buf)}, which was written: it is damaged"
                    )
                done += more
        except OSError as error:
            raise local_error(self._path, error) from error

    def write(self, data: Buffer, offset: int) -> None:
        try:
            done = os.pwrite(self._fd, data, offset)
            while done < len(data):
                done += os.pwrite(self._fd, memoryview(data)[done:], offset + done)
        except OSError as error:
            raise local_error(self._path, error) from error

    def punch(self, offset: int, count: int) -> None:
        """Gives the space of a range back; where the file system cannot, the range keeps it."""
        holes.punch(self._fd, offset, count)

    def write_zeros(self, offset: int, count: int) -> None:
        """Makes a range zeros that have their space, so that later writes to it find room."""
        code = holes.punch(self._fd, offset, count) or holes.allocate(self._fd, offset, count)
        if code in holes.CANNOT:
            for at in range(0, count, len(_ZEROS)):
                self.write(_ZEROS[: count - at], offset + at)
        elif code:
            raise local_error(self._path, OSError(code, os.strerror(code)))

    def sync(self) -> None:
        """Makes all durable that was written."""
        try:
            os.fdatasync(self._fd)
            if self._new:
                sync_directory(self._path.parent)
                self._new = False
        except OSError as error:
            raise local_error(self._path, error) from error

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # A layer that became part of a version is let go of while reads of it are under way.
        self.close()


def layer_file(state: Path, number: int) -> Path:
    """Returns the path of a layer's bytes."""
    return state / "layers" / str(number)


def is_in_use(path: Path) -> bool:
    """Returns True if any process has a layer's file open, or that cannot be said."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)


def local_error(path: Path, error: OSError) -> HostError:
    """Returns the error to raise for one of the local disk."""
    if error.errno in _NO_ROOM:
        return DiskFull(f"no room left to write {path} ({error.strerror}): free some space, then go on")
    return HostError(f"cannot use {path}: {error.strerror or error}")
