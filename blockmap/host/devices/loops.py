"""Loop devices, by the kernel's own calls: a program for each step would cost more time than the steps (loop(4))."""

import errno
import fcntl
import os
import struct
from pathlib import Path

from blockmap.errors import HostError

_CLEAR = 0x4C01
_SET_BLOCK_SIZE = 0x4C09
_CONFIGURE = 0x4C0A
_GET_FREE = 0x4C82
_READ_ONLY = 1
_DIRECT_IO = 16
_NAME_BYTES = 64
_CONFIG = struct.Struct(f"=II40x12xI{_NAME_BYTES}s176x")
"""struct loop_config of <linux/loop.h>: file, block size, flags, name; the rest zero."""
_TRIES = 64
"""Attempts to get a device: others may take the one that was found free."""
SECTOR_BYTES = 4096
"""With smaller ones, mounting ext4 changes the block size of the device, which drops all that its page cache holds."""
SMALL_SECTOR_BYTES = 512


def attach(file: Path, *, writable: bool = False) -> str:
    """Makes a loop device with direct I/O that shows a file, read-only unless `writable`, and returns its path; HostError."""
    try:
        backing = os.open(file, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            return _attach(backing, os.fsencode(file)[: _NAME_BYTES - 1], 0 if writable else _READ_ONLY)
        finally:
            os.close(backing)
    except OSError as error:
        raise HostError(f"the kernel makes no loop device of {file}: {error.strerror}") from error


def detach(device: str) -> None:
    """Detaches a loop device from its file, at once or when it is no longer used; HostError."""
    try:
        _control(device, _CLEAR, 0)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ENOENT):
            raise HostError(f"loop device {device} cannot be detached: {error.strerror}") from error


def set_small_sectors(device: str) -> None:
    """Sets the sectors of a loop device to 512 bytes, for file systems with blocks of less than 4096; HostError."""
    try:
        _control(device, _SET_BLOCK_SIZE, SMALL_SECTOR_BYTES)
    except OSError as error:
        raise HostError(f"the sectors of {device} cannot be changed: {error.strerror}") from error


def next_free() -> str:
    """Returns the loop device that the next `attach` will get, which the kernel makes if it must; HostError."""
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            return f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
        finally:
            os.close(control)
    except OSError as error:
        raise HostError(f"the kernel gives no loop device: {error.strerror}") from error


def showing(file: str) -> list[str]:
    """Returns the loop devices that show a file."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = backing.read_text()
        except OSError:
            continue  # detached meanwhile
        if text.removesuffix("\n") == file:
            found.append(f"/dev/{backing.parts[3]}")
    return found


def is_mounted(device: str) -> bool:
    """Returns True if a file system on a loop device is in use, mounted anywhere or not any more, with files of it open."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _attach(backing: int, name: bytes, flags: int) -> str:
    config = _CONFIG.pack(backing, SECTOR_BYTES, flags | _DIRECT_IO, name)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for attempt in range(_TRIES):
            device = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            try:
                _control(device, _CONFIGURE, config, os.O_RDONLY if flags & _READ_ONLY else os.O_RDWR)
                return device
            except OSError as error:
                if error.errno != errno.EBUSY or attempt == _TRIES - 1:
                    raise
    finally:
        os.close(control)
    raise AssertionError("the last attempt returns or raises")


def _control(device: str, request: int, argument: int | bytes, mode: int = os.O_RDONLY) -> None:
    fd = os.open(device, mode | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, request, argument)
    finally:
        os.close(fd)
