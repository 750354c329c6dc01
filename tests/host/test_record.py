"""`blockmap profile record`: a start is run exactly, and ended when the program is ready."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from blockmap.control.messages import Ready
from blockmap.errors import UsageError
from blockmap.host.run.readiness import parse_readiness
from tests.host.conftest import CONTENT, Host
from tests.host.standin import StandIn
from tests.host.test_warm import device_of, is_warming, served
from tests.waiting import LIMIT_S, free_ports, until

SCRIPT = """
import sys
from blockmap.cli import main, record
record._build = lambda wanted, store, trust, trace: print("built", wanted, store, trace)
main.main()
"""


@pytest.fixture
def front(mounting: Host, need: Callable[..., None]) -> Iterator[StandIn]:
    """Records, as far as a command can tell."""
    need("runc")
    mounting.serve()

    def expect(request: dict[str, Any]) -> dict[str, Any]:
        return {}

    def ready(request: dict[str, Any]) -> dict[str, Any]:
        devices = [Path("/dev", loop.parts[3]) for loop in Path("/sys/block").glob("loop*/loop")]
        shown = [each for each in devices if str(mounting.state) in backing(each)]
        front.asked[-1]["read_ahead"] = [
            int(Path("/sys/block", each.name, "queue/read_ahead_kb").read_text()) for each in shown
        ]
        return {"trace": "/traces/1"}

    front = StandIn(mounting.where / "front", mounting.socket, {"expect": expect, "ready": ready})
    mounting.environment["BLOCKMAP_SOCKET"] = str(front.socket)
    yield front
    front.close()


def backing(device: Path) -> str:
    try:
        return Path("/sys/block", device.name, "loop/backing_file").read_text()
    except OSError:
        return ""


def record(host: Host, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, "profile", "record", *map(str, arguments)],
        env=host.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip


WAITS = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
"""Runs until it is told to end: as the first process, a program without a handler is not ended by SIGTERM."""


@pytest.mark.root
def test_a_program_that_ends_is_recorded_to_its_end(mounting: Host, front: StandIn) -> None:
    done = record(mounting, "app:1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"1built app:1 {mounting.store} /traces/1\n"
    assert "recorded in /traces/1" in done.stderr
    assert front.ops() == ["expect", "ready"]  # and nothing is brought into memory ahead of it
    assert (front.asked[0]["exact"], front.asked[1]["failed"]) == (True, False)
    assert front.asked[1]["read_ahead"] == [0]
    assert front.asked[0]["export"] == front.asked[1]["export"]
    assert mounting.leftovers() == []


@pytest.mark.root
def test_a_program_that_is_ready_is_stopped(mounting: Host, front: StandIn) -> None:
    done = record(mounting, "--ready", "log:I am r.ady", "app:1", "--", "sh", "-c", f"echo I am ready >&2; {WAITS}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"ready after \d\.\d\d s", done.stderr)
    assert front.ops() == ["expect", "ready"]
    assert "built app:1" in done.stdout
    assert mounting.leftovers() == []


@pytest.mark.root
def test_one_that_is_never_ready_is_stopped_too(mounting: Host, front: StandIn) -> None:
    (port,) = free_ports(1)
    done = record(mounting, "--ready", f"tcp:{port}", "--seconds", "0.3", "app:1", "--", "sh", "-c", WAITS)
    assert done.returncode == 1, done.stderr
    assert f"tcp:{port} did not hold within 0.3 s" in done.stderr
    assert "/traces/1" in done.stderr
    assert done.stdout == "", "nothing is built of it"
    assert front.asked[-1]["failed"] is True
    assert mounting.leftovers() == []


@pytest.mark.root
@pytest.mark.parametrize("command", ["exit 3", WAITS, "echo I am rexdy"])
def test_from_one_that_fails_nothing_is_learnt(mounting: Host, front: StandIn, command: str) -> None:
    ready = "log:I am r.ady" if "rexdy" in command else "exit"
    done = record(mounting, "--ready", ready, "--seconds", "2", "app:1", "--", "sh", "-c", command)
    assert (done.returncode, "nothing is learnt" in done.stderr) == (1, True), done.stderr
    assert "built" not in done.stdout
    assert front.ops() == ["expect", "ready"]
    assert [front.asked[0]["start"], front.asked[1]["failed"]] == [False, True]
    assert mounting.leftovers() == []


@pytest.mark.root
def test_what_cannot_be_recorded_is_explained(mounting: Host, front: StandIn) -> None:
    where = mounting.where / "mnt"
    where.mkdir()
    mounting.do("attach", "app:1", where)
    done = record(mounting, "app:1")
    assert (done.returncode, "detach it first" in done.stderr) == (2, True), done.stderr
    mounting.do("detach", where)
    mounting.environment["BLOCKMAP_SOCKET"] = str(mounting.socket)
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    try:
        done = record(mounting, "--ready", f"tcp:{server.server_port}", "app:1")
    finally:
        server.server_close()
    assert (done.returncode, "holds before the program has started" in done.stderr) == (2, True), done.stderr
    assert mounting.leftovers() == []


@pytest.mark.root
def test_what_one_start_read_is_in_memory_at_the_next(mounting: Host, need: Callable[..., None]) -> None:
    need("runc")
    mounting.serve()
    said = mounting.do("profile", "record", "--label", "copy", "app:1", "--", "sh", "-c", "cat content | wc -c")
    assert said.startswith(f"{len(CONTENT)}\n")
    assert "app+copy" in said
    mounting.stop()
    shutil.rmtree(mounting.cache)  # another host
    mounting.serve()
    where = mounting.where / "mnt"
    where.mkdir()
    mounting.do("attach", "--label", "copy", "app:1", where)
    folder, _ = device_of(mounting)
    mounting.client.ask(Ready("app:1+copy"))  # which ends what follows the warming
    until(lambda: not is_warming(folder))
    before = served(mounting)
    assert before[1] > len(CONTENT)
    assert (where / "data/content").read_bytes() == CONTENT
    with open(where / "bin/busybox", "rb", buffering=0) as program:
        assert program.read(4) == b"\x7fELF"
    left_out = 32 * 4096
    assert served(mounting)[1] - before[1] <= 2 * left_out
    mounting.do("detach", where)
    assert mounting.leftovers() == []


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/there" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_readiness() -> None:
    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = Thread(target=server.serve_forever)
    thread.start()
    at = f"127.0.0.1:{server.server_port}"
    try:
        assert parse_readiness(f"tcp:{server.server_port}").holds()
        assert parse_readiness(f"http://{at}/there").holds()
        assert parse_readiness(f"http:http://{at}/there").holds()
        assert parse_readiness(f"http:{server.server_port}/there").holds()
        assert not parse_readiness(f"http:{server.server_port}").holds()
        assert not parse_readiness(f"http://{at}/absent").holds()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not parse_readiness(f"tcp:{server.server_port}").holds()
    assert not parse_readiness(f"http://{at}/there").holds()
    assert not parse_readiness("exit").holds()
    heard = parse_readiness("log:re+ady")
    heard.hear(b"I am re")
    assert not heard.holds()
    heard.hear(b"eady now")
    assert heard.holds()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "exit:1",
        "tcp:",
        "tcp:x",
        "tcp:0",
        "tcp:65536",
        "tcp:\u0661",
        "log:",
        "log:(",
        "http:",
        "http:0",
        "http:65536/x",
        "http:x",
        "http:///x",
        "http://:80/",
        "http://h:x/",
        "http://h:99999/",
        "http:ftp://h/",
        "http:80 /",
        "http://h/\n",
        "http://[/",
        "dns:1",
    ],
)
def test_conditions_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="is no"):
        parse_readiness(text)
