"""Every command, wherever it is run: streams closed, full or gone, in 60 columns, without root, server or store."""

import contextlib
import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator

import click
import pytest

from blockmap.cli.main import program
from tests.cli.zygote import CLOSED, GONE, Ended, Zygote
from tests.image.builder import import_image
from tests.image.layouts import archive, directory, file, layout

CODES = (0, 1, 2, 3, 126, 127, 130)
STAYING = ("serve", "devices", "registry", "top")
"""They go on until they are ended, and have tests of their own."""
STARTING = ("attach", "clone", "commit", "fork", "rewind", "rm", "run", "profile record")
"""They start a server where a store is named, which tests of hosts do."""
FULL = "blockmap: cannot write the output: No space left on device\n"
LONG = "registry.example.org/some/rather/long/name/of/an/image:with-a-long-tag-2026-01-01"


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """All commands below a group, by their words, but those that stay and benchmarks, which take minutes."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name)) if name != "bench" else ()
        elif name not in STAYING:
            yield " ".join((*path, name)), command


COMMANDS = dict(leaves(program))


def words_of(command: click.Command) -> list[str]:
    """Arguments of the right kind, as many as are required."""
    found = []
    for each in command.params:
        if isinstance(each, click.Argument) and each.required:
            is_path = isinstance(each.type, click.Path) or each.name == "source"
            found += ["source" if is_path else "good:1"] * max(each.nargs, 1)
    return found


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """A host without a server, in whose store is an image that is called good:1, and has a long name as well."""
    where = tmp_path_factory.mktemp("host")
    (where / "source").mkdir()
    image = layout(where / "image", [archive([directory("etc"), file("etc/hostname", b"tiny\n")])])
    for name in ("good:1", LONG):
        import_image(where / "store", f"oci:{image}", name, where)
    for each in (where, where / "store"):
        each.chmod(0o755)
    here = {
        "BLOCKMAP_STORE": str(where / "store"), "BLOCKMAP_CACHE": str(where / "cache"), "TMPDIR": str(where),
        "BLOCKMAP_SOCKET": str(where / "run/nbd.sock"), "BLOCKMAP_STATE": str(where / "state"), "HOME": str(where),
    }  # fmt: skip
    with Zygote({**os.environ, **here}, where) as made:
        yield made


@contextlib.contextmanager
def terminal(columns: int) -> Iterator[tuple[str, int]]:
    """A terminal: its path, and the descriptor from which what it shows is read."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        os.set_blocking(ours, False)
        yield os.ttyname(theirs), ours
    finally:
        os.close(ours)
        os.close(theirs)


def shown(fd: int) -> str:
    found = b""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, 1 << 16):
            found += data
    return found.decode()


def sound(done: Ended, case: str) -> None:
    assert "Traceback" not in done.err + done.out, (case, done.err)
    assert "Exception ignored" not in done.err, (case, done.err)
    assert done.code in CODES, (case, done)
    for line in done.err.splitlines():
        assert line.startswith(("blockmap: ", "Usage: ", "Try ", "Error: ", " ")) or not line, (case, line)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_sound(zygote: Zygote, name: str) -> None:
    command = COMMANDS[name]
    arguments = [*name.split(), *words_of(command)]
    own: dict[str, str | None] = {"BLOCKMAP_STORE": None} if name in STARTING else {}
    plain = zygote.run(arguments, environment=own)
    sound(plain, "plain")
    assert plain.out or plain.err or plain.code == 0
    without = zygote.run(arguments, environment={"BLOCKMAP_STORE": None})
    sound(without, "without a store")
    if os.geteuid() == 0:
        sound(
            zygote.run(arguments, environment={"BLOCKMAP_STORE": None, "HOME": "/nonexistent"}, uid=65534),
            "without root",
        )
    full = zygote.run(arguments, environment=own, out="/dev/full")
    sound(full, "full")
    if zygote.run(arguments, environment=own).out:
        assert full.err.count("cannot write the output: No space left on device\n") == 1, full
        assert full.code == 1
    for streams in (
        {"out": GONE},
        {"out": CLOSED},
        {"inn": CLOSED, "out": CLOSED, "err": CLOSED},
        {"err": "/dev/full"},
    ):
        sound(zygote.run(arguments, environment=own, **streams), str(streams))
    with terminal(60) as (path, fd):
        sound(zygote.run(arguments, environment={**own, "TERM": "xterm"}, out=path), "60 columns")
        assert "\u2026" not in shown(fd), "a value is cut off in 60 columns"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(zygote: Zygote, name: str) -> None:
    for arguments in ([*name.split(), "--help"], ["help", *name.split()]):
        done = zygote.run(arguments)
        assert (done.code, done.err) == (0, ""), done
        assert f"blockmap {name}" in done.out
    done = zygote.run([*name.split(), "--no-such-option"])
    sound(done, "no such option")
    assert done.code == 2
