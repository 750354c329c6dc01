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
    """Removes a directory of this user that nobody has locked."""
    try:
        fd = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # another user's, or gone meanwhile
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    except BlockingIOError:
        pass  # at work
    finally:
        os.close(fd)
