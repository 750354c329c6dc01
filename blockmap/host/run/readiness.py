"""Detects that a program is ready: a port answers, a page is there, its output says so, or it has ended."""

import contextlib
import http.client
import re
import socket
import threading
import urllib.request
from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

from blockmap.errors import UsageError

_ASK_SECONDS = 1.0
_SAID_BYTES = 1 << 20
"""Bytes of the program's output that are searched, at most."""


class Readiness(Protocol):
    @property
    def at_exit(self) -> bool:
        """True if the program is ready when it has ended well, and not before."""

    def holds(self) -> bool:
        """Returns True if the program is ready now."""

    def hear(self, said: bytes) -> None:
        """Takes a piece of the program's output."""


def parse_readiness(text: str) -> Readiness:
    """Parses `tcp:PORT`, `http:PORT[/PATH]`, `http:URL`, `text:TEXT`, `log:REGEX` or `exit`. Raises UsageError."""
    kind, _, rest = text.partition(":")
    if text == "exit":
        return _Asked(lambda: False, at_exit=True)
    if kind == "tcp" and _is_port(rest):
        return _Asked(lambda: _listens(int(rest)))
    if kind == "http" and (url := _url(rest)):
        return _Asked(lambda: _is_there(url))
    if kind == "text" and rest:
        return _Heard(re.compile(re.escape(rest).encode()))
    if kind == "log" and rest:
        try:
            return _Heard(re.compile(rest.encode()))
        except re.error as error:
            raise UsageError(f"{rest!r} is no regular expression: {error}") from error
    raise UsageError(
        f"{text!r} is no condition: tcp:PORT, http:PORT[/PATH], http:URL, text:TEXT, log:REGEX and exit are, for example tcp:6379"
    )


class _Asked:
    def __init__(self, ask: Callable[[], bool], *, at_exit: bool = False) -> None:
        self._ask = ask
        self.at_exit = at_exit

    def holds(self) -> bool:
        return self._ask()

    def hear(self, said: bytes) -> None:
        pass


class _Heard:
    at_exit = False

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


def _url(text: str) -> str | None:
    """Returns the URL that is meant by PORT, PORT/PATH, //HOST/PATH or a URL; None if the text is none of them."""
    port, slash, path = text.partition("/")
    if _is_port(port):
        text = f"//127.0.0.1:{port}{slash}{path}"
    url = f"http:{text}" if text.startswith("//") else text
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return url if is_good and url.isascii() and url.isprintable() and " " not in url else None


def _is_port(text: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", text) is not None and 0 < int(text) < 1 << 16


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), _ASK_SECONDS):
        return True
    return False


def _is_there(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_ASK_SECONDS):
            return True
    except (OSError, http.client.HTTPException):
        return False
