"""Freezes a mounted file system for a moment, so that what is below it is whole.

A process of its own does it (freeze_guard), so that the file system thaws whatever becomes of this one.
"""

import contextlib
import ctypes
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host import freeze_guard

_END_SECONDS = 30.0


class Freezer:
    """A process that is ready to freeze one file system."""

    def __init__(self, process: "subprocess.Popen[str]", where: Path) -> None:
        self._process = process
        self._where = where
        self.sync_seconds = 0.0
        """How long it took to write what waited, before anything was frozen."""
        self.stall = 0.0
        """Seconds for which writers had to wait, once the file system has thawed."""

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freezes the file system while the block runs; HostError."""
        process = self._process
        assert process.stdin is not None
        process.stdin.write("freeze\n")
        process.stdin.flush()
        self.expect("frozen")
        try:
            yield
        finally:
            process.stdin.close()
            self.stall = self._thawed()
            process.wait(_END_SECONDS)
        if process.returncode:
            raise HostError(
                f"{self._where} thawed before it was to: what was captured may be no whole file system (it does after "
                f"{freeze_guard.MOST_SECONDS:g} s)"
            )

    def expect(self, word: str) -> None:
        """Waits for the process to say a word; HostError."""
        said = self._said()
        if said != word:
            raise HostError(f"cannot freeze {self._where}: {said or 'its process ended'}")

    def _thawed(self) -> float:
        """Waits for the file system to thaw; returns how long it was frozen. Thaws it if the process was killed before."""
        word, _, seconds = self._said().partition(" ")
        if word == "thawed":
            return float(seconds)
        with contextlib.suppress(OSError):
            fd = os.open(self._where, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.ioctl(fd, freeze_guard.FITHAW, 0)
            finally:
                os.close(fd)
        return 0.0

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def freezer(where: Path, prepare: Callable[[], object]) -> Iterator[Freezer]:
    """Starts a process that can freeze the file system at `where`; meanwhile writes most of what waits there, and calls `prepare`,
    so that freezing has little left to do. HostError."""
    command = [sys.executable, "-I", "-S", freeze_guard.__file__, str(where)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    made = Freezer(process, where)
    try:
        began = time.monotonic()
        _sync(where)
        made.sync_seconds = time.monotonic() - began
        prepare()
        made.expect("ready")
        yield made
    finally:
        if process.stdin is not None and not process.stdin.closed:
            process.stdin.close()
        process.wait(_END_SECONDS)
        if process.stdout is not None:
            process.stdout.close()


def _sync(where: Path) -> None:
    """Writes what waits for the disk of a file system; HostError."""
    try:
        fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(fd):
                raise OSError(code := ctypes.get_errno(), os.strerror(code))
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(f"cannot sync {where}: {error.strerror}") from error
