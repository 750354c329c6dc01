"""Interrupts what is done for a client when the client hangs up, as a person who waits for a command interrupts it."""

import fcntl
import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupted_by(client: socket.socket) -> Iterator[None]:
    """Raises KeyboardInterrupt in the block, once, when the client hangs up. Only the main thread can call this."""

    def look(signum: int, frame: FrameType | None) -> None:
        if select.select([client], [], [], 0)[0] and not client.recv(1, socket.MSG_PEEK):
            signal.signal(signal.SIGIO, signal.SIG_IGN)  # what is undone now is undone to the end
            raise KeyboardInterrupt

    flags = fcntl.fcntl(client, fcntl.F_GETFL)
    before = signal.signal(signal.SIGIO, look)
    try:
        fcntl.fcntl(client, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(client, fcntl.F_SETFL, flags | os.O_ASYNC)
        look(signal.SIGIO, None)  # it may have hung up before
        yield
    finally:
        fcntl.fcntl(client, fcntl.F_SETFL, flags)
        signal.signal(signal.SIGIO, before)
