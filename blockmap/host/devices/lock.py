"""The lock of one device, a file in its folder: held while that device is made, mounted or taken apart.

A folder's name is never used again, so whoever waited for a lock and finds the device off the record starts over.
"""

import fcntl
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

_NAME = "lock"


@dataclass(frozen=True, slots=True)
class DeviceLock:
    """A lock that is held, until it is closed or this process ends."""

    folder: Path
    _fd: int

    def __enter__(self) -> "DeviceLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)


def create(devices: Path) -> DeviceLock:
    """Makes the folder of a new device, locked; OSError."""
    devices.mkdir(parents=True, exist_ok=True)
    lock = attempt(Path(tempfile.mkdtemp(dir=devices)))
    assert lock is not None  # nobody else knows of it
    return lock


def attempt(folder: Path) -> DeviceLock | None:
    """Locks a device without waiting, and makes folder and file where they are absent; returns None where it is locked.

    For callers that hold the lock of the record: nobody removes the folder of a recorded device then. OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return DeviceLock(folder, fd)


def wait(folder: Path) -> DeviceLock | None:
    """Waits for the lock of a device; returns None where the folder has gone. The caller must hold no other of these locks."""
    try:
        fd = os.open(folder / _NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return DeviceLock(folder, fd)
