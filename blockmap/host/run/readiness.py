"""Detects that a program is ready: a port answers, a page is there, its output says so, or it has ended."""

import contextlib
import re
import socket
import threading
import urllib.request
from collections.abc import Callable
from typing import Protocol
from urllib.error import URLError

from blockmap.errors import UsageError

_ASK_SECONDS = 1.0
_SAID_BYTES = 1 << 20
"""Bytes of the program's output that are searched, at most."""


class Readiness(Protocol):
    def holds(self) -> bool:
        """Returns True if the program is ready now."""

    def hear(self, said: bytes) -> None:
        """Takes a piece of the program's output."""


def parse_readiness(text: str) -> Readiness:
    """`tcp:PORT`, `http:URL`, `log:REGEX` or `exit`; UsageError."""
    kind, _, rest = text.partition(":")
    if text == "exit":
        return _Asked(lambda: False)
    if kind == "tcp" and rest.isdecimal() and 0 < int(rest) < 1 << 16:
        return _Asked(lambda: _listens(int(rest)))
    if kind == "http" and rest:
        url = rest if re.match("https?://", rest) else f"http:{rest}"
        return _Asked(lambda: _is_there(url))
    if kind == "log" and rest:
        try:
            return _Heard(re.compile(rest.encode()))
        except re.error as error:
            raise UsageError(f"{rest!r} is no regular expression: {error}") from error
    raise UsageError(f"{text!r} is not a condition: tcp:PORT, http:URL, log:REGEX and exit are, for example tcp:6379")


class _Asked:
    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask

    def holds(self) -> bool:
        return self._ask()

    def hear(self, said: bytes) -> None:
        pass


class _Heard:
    def __init__(self, wanted: re.Pattern[bytes]) -> None:
        self._wanted = wanted
        self._said = b""
        self._found = threading.Event()

    def holds(self) -> bool:
        return self._found.is_set()

    def hear(self, said: bytes) -> None:
        if not self._found.is_set():
            self._said = (self._said + said)[-_SAID_BYTES:]
            if self._wanted.search(self._said):
                self._found.set()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), _ASK_SECONDS):
        return True
    return False


def _is_there(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_ASK_SECONDS):
            return True
    except ValueError as error:
        raise UsageError(f"{url!r} is no URL: {error}") from error
    except (URLError, OSError):
        return False
