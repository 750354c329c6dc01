"""Opens files of a mounted image for root, who must not follow a path out of it, nor wait for what is no file."""

import ctypes
import errno
import os
import stat
import struct

from blockmap.errors import ImageError

_OPENAT2 = 437
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _IN_ROOT = 0x01, 0x02, 0x04, 0x08, 0x10
"""The flags of openat2(2), Linux 5.6."""
_HOW = struct.Struct("=QQQ")
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME | os.O_NONBLOCK | os.O_NOCTTY
"""Without O_NONBLOCK, a FIFO would be waited for."""
_ABSENT = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EACCES,
)  # fmt: skip
"""What an image without the file gives, EACCES among them where it has a device in its place; what else fails is the
reading."""


def open_beneath(root: int, path: str) -> int:
    """Opens a regular file to read, below an open directory, through directories alone; OSError."""
    return _open(root, path, _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH)


def read_in_root(root: str | os.PathLike[str], path: str, most_bytes: int) -> bytes | None:
    """Reads a file as a process whose root is the image would; returns None where there is no regular file.

    ImageError where it has more than `most_bytes`, OSError where it cannot be read.
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = _open(directory, path, _NO_MAGICLINKS | _IN_ROOT)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
    finally:
        os.close(directory)
    with open(fd, "rb") as file:
        found = file.read(most_bytes + 1)
    if len(found) > most_bytes:
        raise ImageError(f"{path} of the image has more than {most_bytes:,} bytes, which is more than it needs")
    return found


def _open(root: int, path: str, resolve: int) -> int:
    how = _HOW.pack(_FLAGS, 0, resolve)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(_OPENAT2, root, ctypes.c_char_p(os.fsencode(path)), ctypes.c_char_p(how), _HOW.size))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENXIO, "no regular file", path)
    return fd
