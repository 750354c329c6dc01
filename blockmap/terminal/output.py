"""Prints to people and programs: what an image or a store says is shown, and does nothing to a terminal.

Messages go to standard error, where nobody need be: what cannot be written there is lost. What cannot be written to standard
output is an error.
"""

import io
import os
import sys
from typing import Any, TextIO

import click

from blockmap.errors import BlockmapError


class OutputFailed(BlockmapError):
    """Standard output cannot be written, its disk is full for one."""


def printable(text: str) -> str:
    """Returns a text with what is no visible character, a newline among them, as its escape."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def tell(*lines: str) -> None:
    """Prints lines, as many as there are arguments, whatever is in them; OutputFailed."""
    click.echo("\n".join(map(printable, lines)))


def warn(text: str, before: str = "blockmap: ") -> None:
    """Prints a message in one line, whatever is in it: what programs say that failed may have more."""
    click.echo(before + " / ".join(map(printable, text.strip("\n").split("\n"))), err=True)


def tell_log(text: str) -> None:
    """Logs a line of a process that goes on, with its time, which systemd's journal adds by itself."""
    import time

    from blockmap.terminal.times import timestamp  # commands that end soon do without

    warn(text, before="" if "JOURNAL_STREAM" in os.environ else f"{timestamp(time.time())} ")


def show_warnings() -> None:
    """Has what the library warns of told as messages; once is enough."""
    import logging  # 6 ms, which commands that warn of nothing need not wait for

    class Warnings(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warn(record.getMessage())

    logging.basicConfig(handlers=[Warnings()])


def open_streams() -> None:
    """Makes standard input, output and error usable, where one is closed or cannot be written."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest number that is free: a file opened later must not get it, and programs expect it to be there.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Messages(2, "w", closefd=False), sys.stderr)


class _Output(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _drop(self.fileno())  # what is buffered would fail once more when Python ends
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputFailed(f"cannot write the output: {error.strerror}") from error


class _Messages(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            _drop(self.fileno())
            return len(data)


def _drop(fd: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def _text(raw: io.FileIO, before: TextIO | None) -> TextIO:
    encoding = before.encoding if before else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=True)
