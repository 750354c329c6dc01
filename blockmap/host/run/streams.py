"""Makes the standard streams of a container that runs detached: its log, and a terminal of its own."""

import contextlib
import fcntl
import os
import pty
import struct
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

from blockmap.host.run.log_file import cut
from blockmap.host.run.runc import Streams

_PIECE_BYTES = 1 << 16
_ROWS, _COLUMNS = 24, 80
"""The size of a terminal that nobody looks at."""
_CUT_SECONDS = 60.0
"""How often the log is looked at: a program that says 100 MB/s has written 6 GB meanwhile."""


@contextlib.contextmanager
def detached_streams(log: Path, *, terminal: bool, interactive: bool) -> Iterator[Streams]:
    """Yields the streams of a program whose output goes to a file: straight, so that it goes on whatever happens to this process.

    With `terminal`, through a terminal, which this process passes on; with `interactive`, its input has no end.
    """
    with contextlib.ExitStack() as stack:
        out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, out)
        over = threading.Event()
        cutter = threading.Thread(target=_cut, args=(log, over), name="log", daemon=True)
        cutter.start()
        stack.callback(cutter.join)
        stack.callback(over.set)
        if terminal:
            ours, theirs = pty.openpty()
            stack.callback(os.close, ours)
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
            pump = threading.Thread(target=_pump, args=(ours, out), name="terminal", daemon=True)
            pump.start()
            stack.callback(pump.join)
            stack.callback(os.close, theirs)
            yield Streams(theirs, theirs, theirs)
        elif interactive:
            reading, writing = os.pipe()
            for fd in (reading, writing):
                stack.callback(os.close, fd)
            yield Streams(reading, out, out)
        else:
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, nothing)
            yield Streams(nothing, out, out)


def _pump(terminal: int, out: int) -> None:
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while piece := os.read(terminal, _PIECE_BYTES):
            os.write(out, piece)


def _cut(log: Path, over: threading.Event) -> None:
    while not over.wait(_CUT_SECONDS):
        with contextlib.suppress(OSError):
            cut(log)
