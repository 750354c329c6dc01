"""Ends an nbdkit that has outlived its supervisor, since it holds the sockets and the cache that the next one needs.

The kernel tells nbdkit to end when its supervisor is killed. That takes a while where it waits for a store or a disk, and does
not happen where the supervisor was killed before nbdkit had asked for it.
"""

import contextlib
import fcntl
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

from blockmap.errors import HostError


def note(lock: int, pid: int, supervisor: int) -> None:
    """Notes in the file of a supervisor's lock which process it has started, and its own."""
    with contextlib.suppress(OSError):  # the process has ended already; or the disk is full, and the cache's lock tells
        began = _stat(pid)[1]
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{pid} {began} {supervisor}\n".encode(), 0)


def end_orphans(lock: int, cache: Path, seconds: float, say: Callable[[str], None]) -> None:
    """Ends what an earlier holder of `lock` started, and what uses the cache although its parent is gone.

    Asks first, and kills after a number of seconds, as a supervisor does. HostError where it does not end.
    """
    for pid in {_noted(lock), _user_of(cache)} - {None}:
        assert pid is not None
        say(f"nbdkit, process {pid}, has outlived its server, which was killed: ending it first")
        if not (_end(pid, signal.SIGTERM, seconds) or _end(pid, signal.SIGKILL, seconds)):
            raise HostError(f"process {pid}, which a killed server left, does not end: its disk may not answer")


def _noted(lock: int) -> int | None:
    """Returns the process that was noted, if it lives."""
    words = os.pread(lock, 64, 0).split()[:2]
    with contextlib.suppress(ValueError, OSError):
        pid, began = map(int, words)
        return pid if _stat(pid)[1] == began else None
    return None


def _user_of(cache: Path) -> int | None:
    """Returns the process that holds the lock of a cache, if its parent is not the one that started it."""
    with contextlib.suppress(ValueError, OSError), open(cache / "lock", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, parent = map(int, file.read(64).split())
            return pid if _stat(pid)[0] != parent else None
    return None


def _stat(pid: int) -> tuple[int, int]:
    """Returns a process's parent, and when it began, in ticks since the host started; OSError where it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":  # only its parent's question what became of it is missing
        raise ProcessLookupError
    return int(fields[1]), int(fields[19])


def _end(pid: int, number: signal.Signals, seconds: float) -> bool:
    """Sends a signal, and waits; returns True if the process has ended in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(fd, number)
        return bool(select.select([fd], [], [], seconds)[0])
    except ProcessLookupError:
        return True
    finally:
        os.close(fd)
