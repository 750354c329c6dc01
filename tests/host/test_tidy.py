"""What nbdkit says is passed on, but for what the plugin has said already."""

import pytest

from blockmap.host.serve.tidy import StartLog, Tidy

BEGIN = b"nbdkit: python[3]: error: /x/plugin.py: open: error: Traceback (most recent call last):\n"
FRAMES = [b'   File "/x/plugin.py", line 131, in open\n', b"    session = _sessions.open(name)\n", b"       ^^^^^\n"]
CHAINED = [
    BEGIN,
    *FRAMES,
    b" FileNotFoundError: [Errno 2] No such file or directory\n",
    b" \n",
    b" The above exception was the direct cause of the following exception:\n",
    b"\x20\n",
    b" Traceback (most recent call last):\n",
    *FRAMES,
]


def passed(lines: list[bytes]) -> list[bytes]:
    out: list[bytes] = []
    tidy = Tidy(out.append)
    for line in lines:
        tidy(line)
    return out


@pytest.mark.parametrize("error", [b"blockmap.errors.NotFound: there is no x:1", b"RequestFailed: read of 4096 bytes"])
def test_what_the_plugin_has_said_is_left_out(error: bytes) -> None:
    last = [b" " + error + b"\n", b"\n"]
    assert passed([b"before\n", BEGIN, *FRAMES, *last, b"after\n"]) == [b"before\n", b"after\n"]
    assert passed([*CHAINED, *last, b"after\n"]) == [b"after\n"]


def test_what_keeps_a_server_from_starting_is_left_out() -> None:
    lines = [
        b"nbdkit: error: /x/plugin.py: after_fork: error: Traceback (most recent call last):\n",
        *FRAMES,
        b" OSError: [Errno 30] Read-only file system: '/c'\n",
        b" \n",
        b"The above exception was the direct cause of the following exception:\n",
        b"\n",
        b" Traceback (most recent call last):\n",
        *FRAMES,
    ]
    assert passed([*lines, b" blockmap.errors.HostError: cannot use /c\n", b"\n", b"after\n"]) == [b"after\n"]
    assert passed([*lines, b" KeyError: 1\n", b"\n", b"after\n"]) == [*lines, b" KeyError: 1\n", b"after\n"]


def test_a_start_is_told_once_it_is_known_how_it_went() -> None:
    out: list[bytes] = []
    log = StartLog(out.append)
    for line in (b"one\n", b"ERROR why\n", b"two\n"):
        log(line)
    assert out == []
    log.release("why")
    log(b"three\n")
    assert out == [b"one\n", b"two\n", b"three\n"]
    log.release("why")
    assert out[3:] == []


def test_other_errors_are_told_whole() -> None:
    lines = [BEGIN, *FRAMES, b" ZeroDivisionError: division by zero\n"]
    assert passed([*lines, b"\n", b"after\n"]) == [*lines, b"after\n"]
    wrapped = [*CHAINED, b" KeyError: 'blockmap.errors.NotFound'\n"]
    assert passed([*wrapped, b"\n"]) == wrapped


def test_lines_of_other_threads_are_not_lost() -> None:
    lines = [BEGIN, FRAMES[0], b"INFO opened\n", *FRAMES[1:], b" blockmap.errors.Corrupt: x\n", b"\n"]
    assert passed(lines) == [b"INFO opened\n"]


def test_one_traceback_after_the_other() -> None:
    one = [BEGIN, *FRAMES, b" KeyError: 1\n"]
    two = [BEGIN, *FRAMES, b" blockmap.errors.Corrupt: x\n", b"\n"]
    assert passed([*one, *two]) == one


def test_what_never_ends_is_told() -> None:
    assert len(passed([BEGIN, *[b" x\n"] * 600])) >= 500


def test_a_server_that_ends_is_no_error() -> None:
    assert passed([b"nbdkit: error: aborting sleep because of server shut down\n", b"\n", b"end\n"]) == [
        b"\n",
        b"end\n",
    ]
