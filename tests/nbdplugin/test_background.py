"""Learning in a process of its own: what it is asked to do, what becomes of it, and that it never stays behind."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockmap.format.signature import PublicKey
from nbdplugin.background import LearnerProcess
from tests.trace.starting import Clock, head
from tests.waiting import until

PROGRAM = """\
import json, os, sys, time
from pathlib import Path
said = Path(sys.argv[1])
fds = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
told = {"arguments": sys.argv[2:], "nice": os.nice(0), "pid": os.getpid(), "fds": fds}
with open(said, "a") as file:
    file.write(json.dumps(told) + chr(10))
if (said.parent / "hang").exists():
    time.sleep(600)
print("some detail")
if (said.parent / "fail").exists():
    sys.exit("the store is read only")
print("profile 3 published")
"""

KEY = PublicKey(bytes(32))


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = folder / "said"
        script = folder / "program.py"
        script.write_text(PROGRAM)
        self.clock = Clock()
        program = (sys.executable, str(script), str(self.said))
        self.learner = LearnerProcess(
            "s3://store", folder / "cache", program, lambda: self.clock.ns / 1e9, trust=(KEY,)
        )

    def asked(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.said.read_text().splitlines()] if self.said.exists() else []

    def labels(self) -> list[str]:
        """What was asked for, in order."""
        return [str(each["arguments"][2]).partition("+")[2] for each in self.asked()]  # type: ignore[index]

    def idle(self) -> None:
        until(lambda: not learning())


def learning() -> bool:
    return any(each.name == "learn" for each in threading.enumerate())


def runs(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}") and Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.learner.close()
    assert not learning()


def test_what_is_asked_for(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    trace = place.folder / "1.trace"
    place.learner.offer(replace(head(), label="migrate"), trace)
    place.idle()
    (asked,) = place.asked()
    export = "a@sha256:" + "00" * 32 + "+migrate"
    assert asked["arguments"] == ["s3://store", str(place.folder / "cache"), export, str(trace), str(KEY)]
    assert "a+migrate: profile 3 published" in caplog.text
    assert "some detail" not in caplog.text
    assert place.learner.status() == {"running": 0, "runs": 1, "failures": 0}


def test_it_has_little_weight_and_none_of_the_sockets(place: Place) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    (place.folder / "hang").touch()
    place.learner.offer(head(), Path("/t"))
    until(place.asked)
    (asked,) = place.asked()
    pid = int(str(asked["pid"]))
    until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == 10)
    assert os.readlink(f"/proc/self/fd/{writing}") not in asked["fds"]  # type: ignore[operator]
    os.close(reading)
    os.close(writing)


def test_a_failure_is_said_and_counted(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    (place.folder / "fail").touch()
    place.learner.offer(head(), Path("/t"))
    place.idle()
    assert place.learner.status() == {"running": 0, "runs": 1, "failures": 1}
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert "the store is read only" in caplog.text


def test_a_program_that_is_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    learner = LearnerProcess("s", tmp_path, ("/nowhere/program",))
    learner.offer(head(), Path("/t"))
    until(lambda: not learning())
    assert learner.status() == {"running": 0, "runs": 1, "failures": 1}
    assert "No such file" in caplog.text


def test_once_a_minute_for_each_workload(place: Place) -> None:
    def offer(label: str) -> None:
        place.learner.offer(replace(head(), label=label), Path("/t"))
        place.idle()

    for label in ("one", "one", "two", "one"):
        offer(label)
    place.clock.forward(59)
    offer("one")
    place.clock.forward(1)
    offer("one")
    assert place.labels() == ["one", "two", "one"]


def test_one_at_a_time(place: Place) -> None:
    (place.folder / "hang").touch()
    for label in ("one", "two", "three"):
        place.learner.offer(replace(head(), label=label), Path("/t"))
    until(place.asked)
    assert place.learner.status() == {"running": 3, "runs": 1, "failures": 0}
    (first,) = place.asked()
    (place.folder / "hang").unlink()
    os.kill(int(str(first["pid"])), signal.SIGKILL)
    place.idle()
    assert place.labels() == ["one", "two", "three"]
    assert place.learner.status() == {"running": 0, "runs": 3, "failures": 1}


def test_it_ends_with_the_server(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    (place.folder / "hang").touch()
    place.learner.offer(head(), Path("/t"))
    until(place.asked)
    (asked,) = place.asked()
    place.learner.close()
    assert not runs(int(str(asked["pid"])))
    place.learner.offer(replace(head(), label="two"), Path("/t"))
    assert place.learner.status() == {"running": 0, "runs": 1, "failures": 0}
    assert caplog.text == ""


def test_it_ends_with_a_server_that_is_killed(place: Place) -> None:
    (place.folder / "hang").touch()
    code = (
        "import sys; from pathlib import Path; from nbdplugin.background import LearnerProcess; "
        "from tests.trace.starting import head; "
        f"LearnerProcess('s', Path('/c'), ({sys.executable!r}, {str(place.folder / 'program.py')!r}, {str(place.said)!r}))"
        ".offer(head(), Path('/t')); sys.stdin.read()"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=root) as server:
        until(place.asked)
        (asked,) = place.asked()
        assert runs(int(str(asked["pid"])))
        server.kill()
    until(lambda: not runs(int(str(asked["pid"]))))
