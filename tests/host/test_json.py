"""What commands print for programs is of one kind: times are UTC in RFC 3339, digests have their algorithm, unknown is null."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from blockmap.cli.main import program
from tests.cli.zygote import Zygote
from tests.host.conftest import Host
from tests.waiting import until

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
BARE_DIGEST = re.compile(r"(?<![:0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d")
TIMES = ("time", "created", "started", "at", "updated", "moved")
EARLY, LATE = 1_500_000_000, 2_500_000_000
"""A number between them is a Unix time, if it is not of bytes or microseconds."""


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands below a group, with their words."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def has_json(command: click.Command) -> bool:
    return any("--json" in option.opts for option in command.params)


def check(value: Any, path: str) -> None:
    """Looks at every value below a document."""
    if isinstance(value, dict):
        for key, below in value.items():
            check(below, f"{path}.{key}")
    elif isinstance(value, list):
        for below in value:
            check(below, f"{path}[]")
    elif isinstance(value, str):
        assert not BARE_DIGEST.search(value.replace("sha256:", "sha256::")) or "/" in value, (path, value)
        assert not LOCAL_TIME.search(value), (path, value)
        if path.rpartition(".")[2] in TIMES:
            assert TIME.fullmatch(value), (path, value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        assert path.rpartition(".")[2] not in TIMES, (path, value)
        assert not EARLY < value < LATE or any(word in path for word in ("bytes", "offset", "_us")), (path, value)


WORDS: dict[str, list[list[str]]] = {
    "clones": [[]],
    "commit": [["mine", "app:committed"]],
    "create": [["{where}/made"], ["{where}/made", "--if-absent"]],
    "diff": [["app:1", "app:2"], ["app:1", "app:2", "--ranges"]],
    "doctor": [[]],
    "export": [["app:1", "oci:{where}/layout"]],
    "fsck": [[]],
    "gc": [["--dry-run"], []],
    "history": [["app:1"]],
    "images": [[], ["--data"]],
    "import": [["{where}/source", "dir:1"]],
    "key list": [[]],
    "log": [["app:1"], ["--graph"]],
    "profile build": [["app:1", "{trace}"]],
    "profile list": [[]],
    "profile log": [["app:1"]],
    "profile show": [["app:1"]],
    "show": [["app:1"], ["app:1", "--files"]],
    "status": [[]],
    "trace list": [[]],
    "trace show": [["{trace}"], ["{trace}", "--files"]],
    "verify": [["app:1"], ["app:1", "--against", "{where}/source"]],
    "version": [[]],
}
"""Arguments of commands that have --json."""
ELSEWHERE = ("bench", "attach", "config", "ps")
"""Commands that print figures alone, or whose own tests look at what they print."""


def test_all_commands_are_here() -> None:
    there = {" ".join(words) for words, command in commands(program) if has_json(command)}
    assert {name for name in there if name.split()[0] not in ELSEWHERE} == set(WORDS)


def test_json_is_of_one_kind(serving: Host, need: Callable[..., None]) -> None:
    need("nbdcopy")
    (serving.where / "source").mkdir()
    (serving.where / "source/file").write_text("text")
    serving.do("clone", "app:1", "mine")
    trace = serving.where / "a.trace"
    made = next(iter(traces_of(serving)))
    trace.write_bytes(made.read_bytes())
    with Zygote(serving.environment, serving.where) as zygote:
        for name in dict.fromkeys(["import", "profile build", *WORDS]):
            for words in WORDS[name]:
                arguments = [word.format(where=serving.where, trace=trace) for word in words]
                done = zygote.run([*name.split(), *arguments, "--json"])
                assert done.code == 0 or "--against" in words, (name, done)
                assert done.out.count("\n") == 1, (name, done)
                check(json.loads(done.out), name)


def traces_of(host: Host) -> list[Path]:
    """Reads an image by a label, which makes a trace."""
    subprocess.run(["nbdcopy", host.uri("app:1+default"), "null:"], check=True)
    until(lambda: list((host.cache / "traces").glob("*.trace")))
    host.stop()
    host.serve()
    return sorted((host.cache / "traces").glob("*.trace"))
