"""A child with descriptors by number."""

import os
import signal
import time
from collections.abc import Sequence

from blockmap.host.serve.process import Process

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def process(script: str, lines: list[bytes], descriptors: Sequence[int] = ()) -> Process:
    return Process(["/bin/sh", "-c", script], ENVIRONMENT, descriptors, lines.append)


def test_descriptors_come_at_three_and_on_in_their_order() -> None:
    pipes = [os.pipe() for _ in range(3)]
    lines: list[bytes] = []
    try:
        # In reverse, and among those that are to be overwritten: each has to arrive all the same.
        ends = [writing for _, writing in reversed(pipes)]
        child = process("echo a >&3; echo b >&4; echo c >&5; echo $LISTEN_PID $$ >&2", lines, ends)
        assert child.wait(30)
        child.end(1)
        assert [os.read(reading, 10) for reading, _ in reversed(pipes)] == [b"a\n", b"b\n", b"c\n"]
    finally:
        for pair in pipes:
            for fd in pair:
                os.close(fd)
    first, second = lines[0].split()
    assert int(first) == int(second) == child.pid
    assert child.status == 0


def test_it_has_nothing_else_of_its_parent() -> None:
    lines: list[bytes] = []
    secret = os.pipe()
    child = process("ls /proc/self/fd >&2; pwd >/dev/null; read x; echo end $? >&2", lines)
    assert child.wait(30)
    child.end(1)
    for fd in secret:
        os.close(fd)
    assert str(secret[1]).encode() + b"\n" not in lines
    assert lines[-1] == b"end 1\n"  # its input is empty


def test_why_it_ended() -> None:
    for script, said in (
        ("echo one >&2; echo 'ERROR the cause' >&2; echo after >&2", "the cause"),
        ("echo one >&2; echo two >&2; echo >&2", "two"),
        ("true", "it said nothing"),
    ):
        lines: list[bytes] = []
        child = process(script, lines)
        assert child.wait(30)
        child.end(1)
        assert (child.error() or child.last_line()) == said


def test_it_is_asked_and_then_made_to_end() -> None:
    lines: list[bytes] = []
    polite = process("trap 'echo asked >&2; exit 3' TERM; echo up >&2; while :; do sleep 0.05; done", lines)
    stubborn = process("trap '' TERM; echo up >&2; while :; do sleep 0.05; done", lines)
    while len(lines) < 2:
        assert not polite.wait(0.01)
    began = time.monotonic()
    polite.end(30)
    stubborn.end(0.3)
    assert time.monotonic() - began < 20
    assert (polite.status, stubborn.status) == (3, -signal.SIGKILL)
    assert b"asked\n" in lines
