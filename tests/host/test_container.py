"""What the runtime is told to run, from what the image says."""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockmap.errors import HostError, ImageError, UsageError
from blockmap.host.run.accounts import user_ids
from blockmap.host.run.container import Surroundings, runtime_config
from blockmap.host.run.options import RunOptions
from tests.host.conftest import GROUP, PASSWD


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(PASSWD + b"# a note\nshort:x\nbad:x:one:two:::\n77:x:500:501::/named:\n")
    (tmp_path / "etc/group").write_bytes(GROUP)
    return tmp_path


def made(
    root: Path, own: dict[str, Any], command: list[str], entrypoint: str | None = None, **options: Any
) -> dict[str, Any]:
    image = json.dumps({"config": own}).encode()
    return configured(image, root, RunOptions(entrypoint=entrypoint, **options), command)


def configured(image: bytes, root: Path, options: RunOptions, command: list[str]) -> dict[str, Any]:
    return runtime_config(image, command, options, Surroundings(root, "host"), terminal=False)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (0, 0, [], "/root")),
        ("root", (0, 0, [], "/root")),
        ("app", (1234, 1235, [1236], "/home/app")),
        ("1234", (1234, 1235, [1236], "/home/app")),
        ("app:extra", (1234, 1236, [], "/home/app")),
        ("app:42", (1234, 42, [], "/home/app")),
        ("4321", (4321, 0, [], "/")),
        ("4321:app", (4321, 1235, [], "/")),
        (":app", (0, 1235, [], "/root")),
        ("77", (500, 501, [], "/named")),  # a name goes before a number
    ],
)
def test_users(root: Path, user: str, expected: tuple[int, int, list[int], str]) -> None:
    assert user_ids(root, user) == expected


@pytest.mark.parametrize("user", ["nobody", "short", "bad", "app:nobody", "-1"])
def test_users_that_the_image_does_not_have(root: Path, user: str) -> None:
    with pytest.raises(ImageError, match="does not have"):
        user_ids(root, user)


def test_files_of_users_that_cannot_be_read_are_not_taken_for_absent(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **named: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("blockmap.host.run.accounts.read_in_root", fail)
    for user in ("", "app"):
        with pytest.raises(HostError, match="cannot read /etc/passwd of the image: Input/output error"):
            user_ids(root, user)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made_by:  # AF_UNIX takes 108 bytes of path
        made_by.bind(path.name)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [fifo, listening, loop, Path.mkdir])
def test_what_is_no_file_is_as_good_as_absent_and_not_waited_for(root: Path, make: Callable[[Path], None]) -> None:
    (root / "etc/passwd").unlink()
    make(root / "etc/passwd")
    assert user_ids(root, "7") == (7, 0, [], "/")


def test_files_of_users_have_a_most(root: Path) -> None:
    os.truncate(root / "etc/passwd", 1 << 34)
    with pytest.raises(ImageError, match="/etc/passwd of the image has more than 4,194,304 bytes"):
        user_ids(root, "")


@pytest.mark.parametrize("number", ["9" * 5000, "4294967296", "\u0661"])
def test_numbers_that_are_no_users(root: Path, number: str) -> None:
    (root / "etc/passwd").write_text(f"big:x:{number}:0::/:/bin/sh\n")
    for user in ("big", number):
        with pytest.raises(ImageError, match="does not have"):
            user_ids(root, user)


def test_files_of_users_are_the_images_own(root: Path, tmp_path: Path) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("/etc/../../../private/passwd")
    assert user_ids(root, "") == (0, 0, [], "/")  # not the host's, and none here
    (root / "private").mkdir()
    (root / "private/passwd").write_text("app:x:5:6::/h:\n")
    assert user_ids(root, "app") == (5, 6, [1236], "/h")
    (root / "etc/group").unlink()
    (root / "etc/group").symlink_to("group")
    assert user_ids(root, "app") == (5, 6, [], "/h")


@pytest.mark.parametrize(
    ("own", "command", "entrypoint", "expected"),
    [
        ({"Cmd": ["a", "b"]}, [], None, ["a", "b"]),
        ({"Cmd": ["a", "b"]}, ["c"], None, ["c"]),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, [], None, ["e", "a"]),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, ["c"], None, ["e", "c"]),
        ({"Entrypoint": ["e"]}, ["c"], None, ["e", "c"]),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, ["c"], "x", ["x", "c"]),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, [], "x", ["x"]),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, ["c", "d"], "", ["c", "d"]),
    ],
)
def test_arguments_as_docker_takes_them(
    root: Path, own: dict[str, Any], command: list[str], entrypoint: str | None, expected: list[str]
) -> None:
    assert made(root, own, command, entrypoint)["process"]["args"] == expected


def test_nothing_to_run(root: Path) -> None:
    for own in ({}, {"Cmd": None, "Entrypoint": None}):
        with pytest.raises(UsageError, match="names no program"):
            made(root, own, [])
    with pytest.raises(ImageError, match="damaged"):
        configured(b"{", root, RunOptions(), [])
    for odd in ({"Cmd": "a"}, {"Cmd": [1]}, {"Cmd": ["a"], "Env": "x"}, {"Cmd": ["a"], "User": 5}, {"Cmd": ["a\0b"]}):
        with pytest.raises(ImageError, match="damaged"):
            made(root, odd, [])
    for text in (b"[]", b'{"config": []}', b'{"config": [1]}', b"[" * 100_000):
        with pytest.raises((ImageError, UsageError), match=r"damaged|names no program"):
            configured(text, root, RunOptions(), [])


def test_environment_and_directory(root: Path) -> None:
    process = made(root, {"Cmd": ["a"], "Env": ["PATH=/x", "A="], "User": "app", "WorkingDir": "work"}, [])["process"]
    assert process["env"] == ["PATH=/x", "A=", "HOSTNAME=host", "HOME=/home/app"]
    assert process["cwd"] == "/work"
    assert process["user"] == {"uid": 1234, "gid": 1235, "additionalGids": [1236]}
    assert process["capabilities"]["effective"] == []
    plain = made(root, {"Cmd": ["a"]}, [])["process"]
    assert plain["cwd"] == "/"
    assert any(entry.startswith("PATH=/usr/local/sbin:") for entry in plain["env"])
    assert "CAP_CHOWN" in plain["capabilities"]["effective"]
