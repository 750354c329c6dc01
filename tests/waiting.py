"""Waiting for what comes by itself, and ports where nobody listens yet."""

import contextlib
import socket
import time
from collections.abc import Callable

LIMIT_S = 60.0


def until(holds: Callable[[], object], said: Callable[[], str] = lambda: "") -> None:
    """Polls; fails, with what `said` gives, where it does not come."""
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end, said()
        time.sleep(0.005)


def free_ports(count: int) -> list[int]:
    """TCP ports of loopback, each another, on which nobody listened a moment ago."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            each = stack.enter_context(socket.socket())
            each.bind(("127.0.0.1", 0))
            found.append(int(each.getsockname()[1]))
        return found


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
