"""Filters nbdkit's messages: leaves out what the plugin has logged already.

nbdkit prints the Python traceback of whatever a callback raises, in lines that begin with a space, and an empty line behind.
Where the error is one that blockmap raises on purpose, the plugin has logged it in one line, and counts those that come in
masses. A traceback of anything else is passed on whole. Where a server does not even start, its supervisor says why.
"""

import re
import threading
from collections.abc import Callable

_BEGIN = re.compile(rb"nbdkit: (?:.*: )?error: .*: error: Traceback \(most recent call last\):$")
_ERROR = re.compile(rb" ([A-Za-z_][\w.]*)(?::|$)")
_ON_PURPOSE = re.compile(rb"blockmap\.errors\.\w+|(?:\w+\.)*RequestFailed")
_CHAINED = (
    b"The above exception was the direct cause of the following exception:",
    b"During handling of the above exception, another exception occurred:",
)
"""Between the tracebacks of an error and of its cause; an empty line follows, which is no end."""
_SLEEP = b"nbdkit: error: aborting sleep because of server shut down"
"""What nbdkit prints when it ends while a thread of it sleeps."""
_MOST_LINES = 500


class Tidy:
    """Takes lines one by one, and passes on to `out` those worth reading."""

    def __init__(self, out: Callable[[bytes], None]) -> None:
        self._out = out
        self._held: list[bytes] = []
        """A traceback whose end has not come yet."""
        self._error = b""

    def __call__(self, line: bytes) -> None:
        text = line.rstrip(b"\n")
        if self._held and (text in _CHAINED or (not text and self._held[-1].rstrip(b"\n") in _CHAINED)):
            self._held.append(line)
            return
        if self._held and (not text or len(self._held) >= _MOST_LINES or _BEGIN.match(text)):
            self._end()
            if not text:
                return
        if _BEGIN.match(text):
            self._held = [line]
        elif self._held and text.startswith(b" "):
            self._held.append(line)
            if named := _ERROR.match(text):
                self._error = named[1]
        elif not text.startswith(_SLEEP):
            self._out(line)

    def _end(self) -> None:
        if not _ON_PURPOSE.fullmatch(self._error):
            for line in self._held:
                self._out(line)
        self._held, self._error = [], b""


class StartLog:
    """Holds back what a server says until it is known whether it starts; safe to share."""

    def __init__(self, out: Callable[[bytes], None]) -> None:
        self._out = out
        self._lock = threading.Lock()  # guards _held
        self._held: list[bytes] | None = []

    def __call__(self, line: bytes) -> None:
        with self._lock:
            if self._held is not None:
                self._held.append(line)
                return
        self._out(line)

    def release(self, known: str | None = None) -> None:
        """Passes on what was held, but for the line that says what is `known`, and all that comes from now on."""
        cause = None if known is None else f"ERROR {known}\n".encode()
        with self._lock:
            for line in self._held or ():
                if line != cause:
                    self._out(line)
            self._held = None
