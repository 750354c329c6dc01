"""Standard streams that are closed, full, or gone: each command does what it is there for, and says in a line what it cannot."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.image.layouts import archive, directory, file, layout
from tests.waiting import LIMIT_S, until

BLOCKMAP = f"{sys.executable} -m blockmap.cli.main"


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs commands as a shell does, with its redirections."""

    where: Path
    environment: dict[str, str]

    def __call__(self, line: str) -> subprocess.CompletedProcess[str]:
        command = line.replace("blockmap", BLOCKMAP, 1)
        done = subprocess.run(
            command, shell=True, cwd=self.where, env=self.environment, capture_output=True, text=True, timeout=LIMIT_S,
            check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert "Exception ignored" not in done.stderr
        return done


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A folder with a source `source`, and a store that has it as good:1."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(b"content" * 1000)
    here = {
        "BLOCKMAP_STORE": str(tmp_path / "store"),
        "BLOCKMAP_CACHE": str(tmp_path / "cache"),
        "BLOCKMAP_SOCKET": str(tmp_path / "run/nbd.sock"),
        "BLOCKMAP_STATE": str(tmp_path / "state"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    made = Shell(tmp_path, {**os.environ, **here})
    assert made("blockmap create").returncode == 0
    assert made("blockmap import source good:1").returncode == 0
    return made


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_with_streams_closed_each_command_works(shell: Shell, closed: str) -> None:
    others = [
        "show good:1",
        "show --files good:1",
        "verify good:1 --against source",
        "trace list",
        "profile list",
        "--help",
    ]
    for arguments in ("create made", "import source new:1", "images", *(others if " " in closed else ())):
        done = shell(f"blockmap {arguments} {closed}")
        assert done.returncode == 0, (arguments, done.stderr)
        assert bool(done.stdout) == (">&-" not in closed.split()), arguments
    names = json.loads(shell("blockmap images --json").stdout)
    assert [row["name"] for row in names] == ["good:1", "new:1"]
    assert shell("blockmap create good-luck/absent --nonsense <&-").returncode == 2


def test_with_streams_closed_a_server_serves(shell: Shell, need: Callable[..., None]) -> None:
    need("nbdkit")
    for closed in ("<&-", "<&- >&- 2>&-"):
        done = shell(f"blockmap serve --idle-exit 0.2 {closed}")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments", ["images", "images --json", "show good:1", "show --files good:1", "trace list", "--help"]
)
def test_output_that_cannot_be_written_is_an_error_of_one_line(shell: Shell, arguments: str) -> None:
    done = shell(f"blockmap {arguments} >/dev/full")
    assert (done.returncode, done.stderr) == (1, "blockmap: cannot write the output: No space left on device\n")


@pytest.mark.parametrize("option", ["", "--json", "--quiet"])
def test_an_import_whose_name_stands_says_so(shell: Shell, option: str) -> None:
    done = shell(f"blockmap import source new:1 {option} >/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("blockmap: new:1 is imported, sha256:")
    assert done.stderr.endswith(", but cannot write the output: No space left on device\n")
    assert "new:1" in shell("blockmap images").stdout


def test_messages_that_cannot_be_written_are_lost_and_nothing_else(shell: Shell) -> None:
    assert shell("blockmap import source new:1 2>/dev/full").returncode == 0
    assert shell("blockmap show absent:1 2>/dev/full").returncode == 1
    assert shell("blockmap images | true").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_hangup_ends_an_import_as_a_termination_does(shell: Shell, number: signal.Signals) -> None:
    temporary = shell.where / "temporary"
    temporary.mkdir()
    os.mkfifo(shell.where / "archive")
    for command, ignored in ((BLOCKMAP, []), (f"nohup {BLOCKMAP}", [signal.SIGHUP])):
        process = subprocess.Popen(
            ["env", "--default-signal=HUP", *command.split(), "import", "docker-archive:archive", "new:1"],
            cwd=shell.where, text=True,
            env={**shell.environment, "TMPDIR": str(temporary)}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        until(lambda: list(temporary.iterdir()) != [])
        time.sleep(0.3)
        process.send_signal(number)
        if number in ignored:
            time.sleep(0.3)
            assert process.poll() is None
            process.terminate()
        _, said = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, said.splitlines()[-1]) == (130, "blockmap: interrupted")
        assert list(temporary.iterdir()) == []


def test_what_a_killed_import_left_is_swept_by_the_next(shell: Shell) -> None:
    temporary = shell.where / "temporary"
    temporary.mkdir()
    os.mkfifo(shell.where / "archive")
    environment = {**shell.environment, "TMPDIR": str(temporary)}
    killed, alive = (
        subprocess.Popen(
            [*BLOCKMAP.split(), "import", "docker-archive:archive", "new:1"], cwd=shell.where, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    )  # fmt: skip
    try:
        until(lambda: len(list(temporary.iterdir())) == 2)
        time.sleep(0.3)
        before = set(temporary.iterdir())
        killed.kill()
        killed.wait()
        (left,) = (each for each in before if is_unlocked(each))
        (left / "image").write_bytes(b"data")
        (temporary / "blockmap-import-link").symlink_to(shell.where / "source")
        done = subprocess.run(
            [*BLOCKMAP.split(), "import", "source", "new:1"], cwd=shell.where, env=environment, check=False
        )
        assert done.returncode == 0
        assert set(temporary.iterdir()) == (before - {left}) | {temporary / "blockmap-import-link"}
        assert (shell.where / "source/file").exists()
    finally:
        alive.terminate()
        alive.wait()


def is_unlocked(directory: Path) -> bool:
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def test_a_terminal_that_has_gone_is_no_trouble(shell: Shell) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        f"sleep 0.5; {BLOCKMAP} import source new:1", shell=True, cwd=shell.where, env=shell.environment,
        stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    assert process.wait(LIMIT_S) == 0


def test_what_an_image_says_does_nothing_to_a_terminal(shell: Shell) -> None:
    members = [directory("a\x1b[2J"), file("a\x1b[2J/b\nblockmap: all is well", b"x")]
    config = {"created": "\x1b]0;owned\x07", "config": {"Cmd": ["\x1b[2J"], "Labels": {"\x1b[1m": "\x07"}}}
    made = layout(shell.where / "odd", [archive(members)], config=config)
    tag = json.loads((made / "index.json").read_text())
    assert tag
    done = shell(f"blockmap import oci:{made} odd:1 --platform linux/amd64")
    assert done.returncode == 0, done.stderr
    for arguments in ("show odd:1", "show --files odd:1", "verify odd:1 --against source", "images"):
        done = shell(f"blockmap {arguments}")
        said = done.stdout + done.stderr
        assert said
        assert all(character >= " " or character == "\n" for character in said), said
        assert not any(line.startswith("blockmap: all is well") for line in said.splitlines())
    assert "\\x1b[2J" in shell("blockmap show --files odd:1").stdout
