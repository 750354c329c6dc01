"""What a served host tells of itself: to Prometheus, to a person, and call by call."""

import contextlib
import fcntl
import http.client
import os
import pty
import re
import select
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from blockmap.control.messages import Hydrate, Resolve
from blockmap.control.store_log import read_calls
from blockmap.server.store_log import serial_steps
from tests.serve.conftest import BLOCKMAP, Server
from tests.serve.nbd import Nbd
from tests.waiting import LIMIT_S, free_ports, until

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=LIMIT_S)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT_S)
        self.sock.connect(self._path)


def get(connection: http.client.HTTPConnection, accept: str = "text/plain") -> tuple[str, str]:
    """The type of an answer, and its text."""
    connection.request("GET", "/metrics", headers={"Accept": accept})
    answer = connection.getresponse()
    assert answer.status == 200
    return answer.headers["Content-Type"], answer.read().decode()


def scrape(path: Path) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels."""
    with contextlib.closing(UnixConnection(path)) as connection:
        _, text = get(connection)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def metrics(idle_server: Server) -> Iterator[Path]:
    path = idle_server.where / "metrics.sock"
    idle_server.start("--metrics", str(path))
    yield path
    if idle_server.process is not None:
        assert idle_server.stop() == 0
    assert not path.exists()


def test_a_scrape_says_what_is_brought_ahead(metrics: Path, idle_server: Server) -> None:
    server = idle_server
    repo, _, digest = server.client.ask(Resolve("small:1")).export.partition("@sha256:")
    export = f"{repo}@{digest[:12]}"
    found = scrape(metrics)
    assert ("blockmap_hydration_running", export) not in found
    assert (found["blockmap_fetch_bundles_running",], found["blockmap_fetch_bundles_failed_total",]) == (0, 0)
    server.client.ask(Hydrate("small:1"))
    until(lambda: scrape(metrics).get(("blockmap_hydration_running", export)) == 0)
    assert scrape(metrics)["blockmap_hydration_bytes", export] > 0


def test_every_number_of_a_part_is_told(metrics: Path, idle_server: Server) -> None:
    told = {key[0].removesuffix("_total") for key in scrape(metrics)}
    status = idle_server.client.status()
    for part in ("cache", "fetch", "traces", "learn"):
        numbers = {name for name, value in status[part].items() if isinstance(value, int | float)}
        assert {f"blockmap_{part}_{name}" for name in numbers} <= told


def test_a_scrape_says_what_was_read(metrics: Path, idle_server: Server) -> None:
    server = idle_server
    repo, _, digest = server.client.ask(Resolve("small:1")).export.partition("@sha256:")
    export = f"{repo}@{digest[:12]}"
    before = scrape(metrics)
    assert ("blockmap_connections", export) not in before
    with Nbd(server.socket, "small:1") as nbd:
        for number in range(3):
            nbd.read(0, 4096)
            nbd.read(nbd.size - 4096, 4096)
            found = scrape(metrics)
            assert found["blockmap_connections", export] == 1
            assert found["blockmap_reads_total", export, "zeros"] == number + 1
        for _ in range(200):
            nbd.read(0, 8192)
        nbd.read(0, 1 << 20)
    until(lambda: ("blockmap_connections", export) not in scrape(metrics))
    found = scrape(metrics)
    reads = {
        source: found["blockmap_reads_total", export, source] for source in ("zeros", "cache", "bundle", "fetched")
    }
    assert sum(reads.values()) == 3 + 3 + 200 + 1
    assert reads["zeros"] >= 3
    assert reads["fetched"] >= 1
    assert reads["cache"] >= 200
    size = [found["blockmap_read_bytes_total", export, source] for source in reads]
    assert sum(size) == 6 * 4096 + 200 * 8192 + (1 << 20)
    assert found["blockmap_read_errors_total", export] == 0
    for source in ("zeros", "fetched"):
        assert found["blockmap_read_seconds_count", export, source] == reads[source]
    measured = found["blockmap_read_seconds_count", export, "cache"]
    assert reads["cache"] * 0.7 <= measured <= reads["cache"]
    assert found["blockmap_remote_requests_total", "get_range", "ok"] > before.get(
        ("blockmap_remote_requests_total", "get_range", "ok"), 0
    )
    assert found["blockmap_remote_bytes_total", "get_range"] >= found["blockmap_fetch_bytes_total",] > 0
    assert found["blockmap_cache_bytes",] > 0
    assert found["blockmap_opens_total",] == 1
    assert 0 < time.time() - found["blockmap_start_time_seconds",] < 600
    assert found["process_resident_memory_bytes",] > 1 << 20


def test_prometheus_gets_openmetrics_over_one_connection(metrics: Path, idle_server: Server) -> None:
    with Nbd(idle_server.socket, "small:1") as nbd:
        nbd.read(0, 4096)
    with contextlib.closing(UnixConnection(metrics)) as connection:
        first, _ = get(connection)
        assert first.startswith("text/plain")
        kept = connection.sock
        second, text = get(connection, OPENMETRICS)
        assert connection.sock is kept, "HTTP/1.1 keeps the connection"
    assert second.startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(text)}
    assert {"blockmap_reads", "blockmap_read_seconds", "blockmap_remote_requests", "blockmap_cache_bytes"} <= names


def test_metrics_on_tcp_and_after_nbdkit_was_killed(idle_server: Server) -> None:
    (port,) = free_ports(1)
    idle_server.start("--metrics", f"127.0.0.1:{port}")
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)) as connection:
        assert "blockmap_opens_total 0.0" in get(connection)[1]
    os.kill(idle_server.nbdkit(), signal.SIGKILL)
    # No wait: the socket is the supervisor's, and who asks now is answered by the next nbdkit.
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)) as connection:
        assert "blockmap_opens_total" in get(connection)[1]
    assert "warning" not in idle_server.said()


def test_clients_that_hang_up_disturb_no_scrape(metrics: Path, idle_server: Server) -> None:
    for sent in (b"", b"GET", b"GET /metrics HTTP/1.1\r\n\r\n", b"\xff\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(metrics))
            client.sendall(sent)
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(metrics))
        assert scrape(metrics)["blockmap_opens_total",] == 0
    assert "Traceback" not in idle_server.said()


def test_who_watches_does_not_take_all_descriptors(metrics: Path) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(100)]
        for client in idle:
            client.settimeout(LIMIT_S)
            client.connect(str(metrics))
        assert idle[-1].recv(1) == b"", "one too many is hung up on"
    until(lambda: answers(metrics))


def answers(metrics: Path) -> bool:
    try:
        return ("blockmap_opens_total",) in scrape(metrics)
    except (ConnectionError, http.client.HTTPException):
        return False


def test_where_metrics_cannot_be_answered_is_said(idle_server: Server) -> None:
    (idle_server.where / "file").write_text("notes")
    for where, said in (
        ("nonsense", "is not HOST:PORT"),
        (str(idle_server.where / "file"), "remove it, or name another with --metrics"),
        ("192.0.2.1:9", "change --metrics"),
        (str(idle_server.where / "no" / "such"), "name another with --metrics"),
    ):
        done = idle_server.run("serve", "--metrics", where, check=False)
        assert done.returncode in (1, 2)
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_calls_of_a_start_can_be_counted(server: Server) -> None:
    _, begin = read_calls(server.client, 0)
    with Nbd(server.socket, "small:1") as nbd:
        nbd.read(0, 4096)
    calls, end = read_calls(server.client, begin)
    assert end - begin == len(calls)
    assert {call.op for call in calls} <= {"get", "get_range", "list", "exists"}
    assert 2 <= serial_steps(calls) <= len(calls)
    assert 0 < sum(call.bytes for call in calls) < 20 << 20
    assert all(call.start_s <= time.monotonic() and call.seconds >= 0 for call in calls)
    assert read_calls(server.client, end) == ([], end)


def test_status_for_a_person(server: Server) -> None:
    with Nbd(server.socket, "small:1") as nbd:
        for _ in range(100):
            nbd.read(0, 4096)
        out = server.run("status").stdout
    lines = out.splitlines()
    header = next(line for line in lines if line.startswith("EXPORT"))
    row = next(line for line in lines if line.startswith("small@"))
    assert "READS" in header
    assert " 100 " in row
    hits = re.search(r"([\d.]+) %", row)
    assert hits is not None
    assert 50 <= float(hits[1]) < 100, "the first read was fetched, and some that came before the cache had it"
    assert any(line.startswith("fetched") and "requests" in line for line in lines)
    assert any(line.startswith("latency") and "(p99)" in line for line in lines)


def _take_terminal() -> None:
    """What is typed can be a signal, also where the tests were started with signals ignored."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Screen:
    """A program on a terminal of its own."""

    def __init__(self, server: Server, *arguments: str) -> None:
        ours, theirs = pty.openpty()
        self.fd = ours
        self.process = subprocess.Popen(
            [*BLOCKMAP, *arguments],
            env={**server.environment, "TERM": "xterm", "COLUMNS": "140", "LINES": "40"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        self.text = ""

    def wait_for(self, words: str) -> None:
        end = time.monotonic() + LIMIT_S
        while words not in self.text:
            assert time.monotonic() < end, self.text
            assert self.pump(0.1) or self.process.poll() is None, self.text

    def pump(self, seconds: float) -> bool:
        """Takes what is written; whether there was any."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # nobody has the terminal any more
            return False
        self.text += data.decode(errors="replace")
        return bool(data)

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def end(self) -> int:
        end = time.monotonic() + LIMIT_S
        while self.process.poll() is None and time.monotonic() < end:
            self.pump(0.05)
        return self.process.wait(1)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.mark.parametrize("end", [b"q", b"\x03"])
def test_top_shows_exports_and_ends_when_told(server: Server, end: bytes) -> None:
    with Nbd(server.socket, "small:1") as nbd, contextlib.closing(Screen(server, "top")) as screen:
        screen.wait_for("small@")
        assert "hits" in screen.text.lower()
        nbd.read(0, 4096)
        screen.type(end)
        assert screen.end() == 0
        assert "Traceback" not in screen.text
        assert "\x1b[?25h" in screen.text, "the cursor is shown again"


def test_top_waits_for_a_server_and_goes_on(idle_server: Server) -> None:
    with contextlib.closing(Screen(idle_server, "top")) as screen:
        screen.wait_for("waiting for the server")
        idle_server.start()
        screen.wait_for("nothing is open")
        os.kill(idle_server.nbdkit(), signal.SIGKILL)
        idle_server.wait_ready()
        with Nbd(idle_server.socket, "small:1"):
            screen.wait_for("small@")
            screen.type(b"q")
            assert screen.end() == 0


def test_top_needs_a_terminal(idle_server: Server) -> None:
    done = idle_server.run("top", check=False)
    assert done.returncode == 2
    assert "blockmap status --json" in done.stderr
