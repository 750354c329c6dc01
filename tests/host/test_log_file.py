"""Logs of detached containers: their last lines, what is added, and what is cut off."""

import os
from pathlib import Path

import pytest

from blockmap.host.run.log_file import cut, read_log


def read(path: Path, tail: int | None = None) -> bytes:
    return b"".join(read_log(path, tail, None))


@pytest.mark.parametrize(
    ("text", "tail", "expected"),
    [
        (b"", None, b""),
        (b"", 3, b""),
        (b"a\nb\nc\n", None, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 0, b""),
        (b"a\nb\nc\n", 1, b"c\n"),
        (b"a\nb\nc", 1, b"c"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"\n\n\n", 2, b"\n\n"),
        (b"a\nb\n", 9, b"a\nb\n"),
        (b"a" * 70_000 + b"\n" + b"b" * 70_000 + b"\n", 1, b"b" * 70_000 + b"\n"),
    ],
)
def test_last_lines(tmp_path: Path, text: bytes, tail: int | None, expected: bytes) -> None:
    log = tmp_path / "log"
    log.write_bytes(text)
    assert read(log, tail) == expected


def test_a_long_log_loses_its_beginning_and_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = [b"line %07d\n" % number for number in range(100_000)]
    with open(log, "ab", buffering=0) as said:
        said.write(b"".join(lines))
        cut(log, 2_000_000)
        assert read(log) == b"".join(lines), "it is not too long"
        cut(log, 500_000)
        if os.stat(log).st_blocks * 512 > 1_000_000:
            pytest.skip("the file system of temporary files makes no holes")
        said.write(b"more\n")
    kept = read(log).splitlines(keepends=True)
    assert kept[-1] == b"more\n"
    assert kept[:-1] == lines[-len(kept) + 1 :]
    assert 500_000 - 13 < sum(map(len, kept[:-1])) < 500_000 + (1 << 17)
    assert read(log, 1_000_000) == b"".join(kept)
    assert read(log, 2) == lines[-1] + b"more\n"


def test_what_is_added_is_read_until_nothing_more_comes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a\n")
    asked = 0

    def goes_on() -> bool:
        nonlocal asked
        asked += 1
        with open(log, "ab") as said:
            said.write(b"%d\n" % asked)
        return asked < 3

    assert b"".join(read_log(log, None, goes_on)) == b"a\n1\n2\n3\n"
