"""Allocates and frees space inside of files, which Python's `os` has no call for (fallocate(2))."""

import ctypes
import errno

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02

_IN_PLACE = (0xEF53, 0x58465342, 0x01021994)
"""The types of ext4, XFS and tmpfs, as in statfs(2)."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of file systems that cannot do it."""


def punch(fd: int, position: int, length: int) -> int:
    """Makes a range of a file a hole, which reads as zeros; returns 0, or the error's number."""
    return _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, position, length)


def allocate(fd: int, position: int, length: int) -> int:
    """Gives a range of a file space, as zeros where it was a hole; returns 0, or the error's number."""
    return _fallocate(fd, 0, position, length)


def writes_in_place(fd: int) -> bool:
    """Returns True if a file's system is known to need no room for a write to what is allocated: others copy on write."""
    about = (ctypes.c_long * 64)()  # struct statfs has 15 of them on 64-bit machines, and begins with the type
    return _libc.fstatfs(fd, about) == 0 and about[0] in _IN_PLACE


def _fallocate(fd: int, mode: int, position: int, length: int) -> int:
    while _libc.fallocate(fd, mode, position, length):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            return code
    return 0
