"""`run --clone --every`: versions of a clone while a program runs on it."""

import json
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.host.conftest import Host
from tests.waiting import LIMIT_S, until

pytestmark = pytest.mark.root


@pytest.fixture
def cloned(mounting: Host, need: Callable[..., None]) -> Host:
    """A host with a server, that can run containers, with web, a clone of app:1."""
    need("runc")
    mounting.serve()
    mounting.do("clone", "app:1", "web")
    return mounting


def entries(host: Host, name: str) -> list[dict[str, object]]:
    done = host.run("log", name, "--json")
    found: list[dict[str, object]] = json.loads(done.stdout) if done.returncode == 0 else []
    return found


def running(host: Host, program: str, *options: str) -> subprocess.Popen[str]:
    return host.start("run", "--clone", "--every", "1s", "--to", "app:live", *options, "web", "--", "sh", "-c", program)


def root(host: Host) -> Path:
    """The container's root, as the host has it mounted."""
    (folder,) = host.state.glob("runs/run-*/image")
    return folder


def test_versions_are_made_as_it_goes_and_at_the_end(cloned: Host) -> None:
    process = running(cloned, "echo one >/data/n; sleep 3.2; echo two >/data/n; exit 3")
    until(lambda: len(entries(cloned, "app:live")) > 0)
    assert cloned.do("run", "app:live", "--", "cat", "/data/n") == "one\n", "while it runs"
    said = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, said) == (3, ("", ""))
    made = entries(cloned, "app:live")
    # The first second may be over before the program has written; four is what it would be with the unchanged ones.
    assert 2 <= len(made) <= 3
    assert made[0]["message"] == "web at its end, status 3"
    assert all(newer["parents"] == [older["digest"]] for newer, older in pairwise(made))
    assert cloned.do("run", "app:live", "--", "cat", "/data/n") == "two\n"
    assert cloned.leftovers() == []


def test_whoever_else_moves_the_name_is_not_overtaken(cloned: Host) -> None:
    wait = "while [ ! -e /data/go ]; do sleep 0.1; done"
    process = running(cloned, f"echo one >/data/n; {wait}; echo two >/data/n; sleep 1.5", "-m", "nightly")
    until(lambda: len(entries(cloned, "app:live")) > 0)
    assert entries(cloned, "app:live")[0]["message"] == "nightly"
    cloned.do("tag", "app:2", "app:live", "-m", "mine")
    (root(cloned) / "data/go").touch()
    _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said
    (line,) = said.splitlines()
    assert "app:live was moved meanwhile by" in line
    assert "(mine)" in line
    assert "`blockmap commit web NAME --retry`" in line
    assert cloned.do("run", "app:live") == "2", "what somebody else made of it"
    (row,) = json.loads(cloned.do("clones", "--json"))
    assert row["unpublished"] == 1
    cloned.do("commit", "web", "app:mine", "--retry")
    assert cloned.do("run", "app:mine", "--", "cat", "/data/n") == "two\n"


def test_options_that_go_together(cloned: Host) -> None:
    for options in (["--every", "1s"], ["--to", "app:x"], ["--every", "1s", "--to", "app:x"]):
        done = cloned.run("run", *options, "app:1")
        assert (done.returncode, "go together" in done.stderr) == (2, True), done.stderr
    done = cloned.run("run", "--clone", "--every", "0s", "--to", "app:x", "web")
    assert (done.returncode, "name a longer time" in done.stderr) == (2, True), done.stderr
