"""Processes of this host that go on when the command that began them has ended.

Each holds the lock of a file while it lives, and its pid is in there: so whoever takes apart what it works on ends it first, and
one that was killed holds nothing.
"""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from blockmap.errors import HostError

_END_SECONDS = 10.0
_POLL_SECONDS = 0.002


def lock(path: Path) -> int:
    """Takes the lock of a file for a process that is about to begin, which gets the descriptor; OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd


def note_pid(lock: int, pid: int) -> None:
    """Notes which process has a lock."""
    os.pwrite(lock, str(pid).encode(), 0)


@contextlib.contextmanager
def ended(path: Path, what: str) -> Iterator[bool]:
    """Ends the process that has the lock of a file, and holds the lock meanwhile; False where there is no such file.

    HostError where the process, which is `what`, does not end.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        deadline = time.monotonic() + _END_SECONDS
        while not take(fd):
            pid = _pid(fd)
            if pid:
                # Whoever holds the lock lives, so the pid is its own.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise HostError(f"process {pid}, which {what}, does not end: the store may be away")
            time.sleep(_POLL_SECONDS)
        yield True
        with contextlib.suppress(ChildProcessError):
            os.waitpid(_pid(fd), os.WNOHANG)
    finally:
        os.close(fd)


def is_running(path: Path) -> bool:
    """Returns True if a process has the lock of a file."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not take(fd)
    finally:
        os.close(fd)


def _pid(fd: int) -> int:
    return int(os.pread(fd, 20, 0) or 0)


def take(fd: int) -> bool:
    """Takes the lock of a file; returns False where another process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
