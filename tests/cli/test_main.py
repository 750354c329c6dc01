"""The program itself: what it says to words that it does not know, its list of commands, and the time until it asks anything."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from blockmap.cli.main import program
from blockmap.errors import UsageError
from blockmap.host.manager.place import socket_name

ROUNDS = 10  # the fastest of each counts: others may use the machine
MOST_RATIO = 1.5


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("pull", "there is no 'pull': did you mean import?"),
        ("ls", "there is no 'ls': did you mean images?"),
        ("rmi", "there is no 'rmi': did you mean untag?"),
        ("imprt", "there is no 'imprt': did you mean import?"),
        ("qqqqqq", "there is no 'qqqqqq': see `blockmap --help`"),
    ],
)
def test_a_word_that_is_no_command(word: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        program.main([word, "redis:7"], standalone_mode=False)
    assert str(raised.value) == said


def groups(command: click.Command, *words: str) -> Iterator[tuple[str, ...]]:
    """Yields the words that lead to each group of commands."""
    if isinstance(command, click.Group):
        yield words
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from groups(found, *words, name)


def test_lists_of_commands_are_cut_off_nowhere() -> None:
    for words in groups(program):
        said = CliRunner().invoke(program, [*words, "--help"], terminal_width=80).output
        assert [line for line in said.partition("Commands:")[2].splitlines() if line.endswith("...")] == []


@pytest.mark.root
def test_it_asks_soon(tmp_path: Path, need_root: None) -> None:
    """In processor time, which until then is all of the time that nobody else uses: nothing is waited for."""
    blockmap = shutil.which("blockmap", path=str(Path(sys.executable).parent))
    assert blockmap is not None
    environment = {**os.environ, "BLOCKMAP_STATE": str(tmp_path), "BLOCKMAP_STORE": str(tmp_path / "store")}
    idle, asks = [], []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / socket_name()))
        listening.listen()
        for _ in range(ROUNDS):
            process = subprocess.Popen([sys.executable, "-c", "import click"])
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            idle.append(usage.ru_utime + usage.ru_stime)
            process = subprocess.Popen([blockmap, "attach", "redis:7", str(tmp_path)], env=environment)
            client, _ = listening.accept()
            with client:
                assert client.recv(1 << 16)
                asks.append(int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]) / 1e9)
                process.kill()
                process.wait()
    assert min(asks) <= MOST_RATIO * min(idle), f"{min(asks):.3f} s, and {min(idle):.3f} s to import click"
