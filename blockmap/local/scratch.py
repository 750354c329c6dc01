"""Directories for temporary files: whoever makes one removes those that killed processes left."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "blockmap-"


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Gives a directory of its own, in TMPDIR, for as long as the block runs."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{name}-*"):
        _remove_left(left)
    work, fd = _make(name)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(fd)


def left_over() -> list[Path]:
    """Returns the directories of this user that killed processes left."""
    found = []
    for each in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*")):
        fd = _lock_left(each)
        if fd is not None:
            found.append(each)
            os.close(fd)
    return found


def _make(name: str) -> tuple[Path, int]:
    """Makes a directory, and locks it, which a process that is killed ends."""
    while True:
        work = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}-"))
        try:
            fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another process looked before it was locked, and took it for left
        fcntl.flock(fd, fcntl.LOCK_EX)
        if work.exists():
            return work, fd
        os.close(fd)


def _remove_left(left: Path) -> None:
    fd = _lock_left(left)
    if fd is not None:
        shutil.rmtree(left, ignore_errors=True)
        os.close(fd)


def _lock_left(left: Path) -> int | None:
    """Locks a directory of this user that nobody has locked; returns None where it is another's, or at work."""
    try:
        fd = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None  # another user's, or gone meanwhile
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None
