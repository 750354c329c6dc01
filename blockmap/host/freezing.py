"""Freezes a mounted file system for a moment, so that what is below it is whole. A process of its own does it:

    python -m blockmap.host.freezing DIR

It thaws when its standard input ends, as it does when whoever asked for it has died, or after ten seconds.
"""

import ctypes
import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blockmap.errors import HostError

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878  # linux/fs.h: _IOWR('X', 119, int), _IOWR('X', 120, int)
_MOST_SECONDS = 10.0
_START_SECONDS = 30.0


class Freezer:
    """A process that is ready to freeze one file system."""

    def __init__(self, process: "subprocess.Popen[str]", where: Path) -> None:
        self._process = process
        self._where = where
        self.stall = 0.0
        """Seconds for which writers had to wait, as far as can be seen from here."""

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freezes the file system while the block runs; HostError."""
        process = self._process
        assert process.stdin is not None
        began = time.monotonic()
        process.stdin.write("freeze\n")
        process.stdin.flush()
        self.expect("frozen")
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(_START_SECONDS)
            self.stall = time.monotonic() - began
        if process.returncode:
            raise HostError(
                f"{self._where} was thawed after {_MOST_SECONDS:g} s: what was captured may be no whole file system"
            )

    def expect(self, word: str) -> None:
        """Waits for the process to say a word; HostError."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != word:
            raise HostError(f"cannot freeze {self._where}: {said or 'its process ended'}")


@contextmanager
def freezer(where: Path) -> Iterator[Freezer]:
    """Starts a process that can freeze the file system at `where`, and writes most of what waits there first; HostError."""
    command = [sys.executable, "-m", "blockmap.host.freezing", str(where)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    made = Freezer(process, where)
    try:
        made.expect("ready")
        yield made
    finally:
        if process.stdin is not None and not process.stdin.closed:
            process.stdin.close()
        process.wait(_START_SECONDS)
        if process.stdout is not None:
            process.stdout.close()


def _sync(fd: int) -> None:
    """Writes what waits for the file system's disk, so that freezing has little left to do."""
    if ctypes.CDLL(None, use_errno=True).syncfs(fd):
        raise OSError(code := ctypes.get_errno(), os.strerror(code))


def _main(where: str, say: Callable[[str], None]) -> int:
    try:
        fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
        _sync(fd)
    except OSError as error:
        say(str(error.strerror))
        return 1
    say("ready")
    if not sys.stdin.readline():
        return 0
    try:
        fcntl.ioctl(fd, _FIFREEZE, 0)
    except OSError as error:
        say(str(error.strerror))
        return 1
    try:
        say("frozen")
        ended, _, _ = select.select([0], [], [], _MOST_SECONDS)
    finally:
        fcntl.ioctl(fd, _FITHAW, 0)
    return 0 if ended else 1


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], lambda text: print(text, flush=True)))
