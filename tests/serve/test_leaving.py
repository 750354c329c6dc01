"""Servers that end, or are killed, under clients that have to go on with the next."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockmap.control.messages import Resolve
from blockmap.errors import HostError
from blockmap.host.devices.negotiation import negotiate
from blockmap.host.remote import RemoteServer, resolve_remote
from blockmap.host.serve.revival import revive
from blockmap.local.paths import is_remote
from tests.serve.conftest import Server
from tests.serve.nbd import Nbd
from tests.waiting import free_ports, until


def read_until_left(server: Server, begun: threading.Barrier) -> str:
    """Reads until the server hangs up; returns what it said instead of hanging up."""
    with Nbd(server.socket, "small:1") as nbd:
        nbd.read(0, 4096)
        begun.wait(30)
        try:
            while True:
                nbd.read(1 << 20, 65536)
        except ConnectionError:
            return ""
        except OSError as error:
            return repr(error)


def test_a_server_that_ends_answers_no_request_with_an_error(server: Server) -> None:
    begun = threading.Barrier(9)
    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read_until_left, server, begun) for _ in range(8)]
        begun.wait(30)
        pid = server.nbdkit()
        os.kill(pid, signal.SIGTERM)
        assert [reader.result(60) for reader in readers] == [""] * 8
    server.wait_next(pid)


@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")  # it outlives whoever started it
def test_a_killed_server_is_started_again_as_it_was(idle_server: Server) -> None:
    server = idle_server
    server.start("--outage", "wait=77")
    assert server.process is not None
    command, killed = server.process.args, server.nbdkit()
    said: list[str] = []
    revive(server.socket, said.append)
    assert said == []
    server.process.kill()
    server.process.wait()
    revive(server.socket, said.append)
    server.wait_next(killed)
    (line,) = said
    assert "was killed: it is started again" in line
    nbdkit = server.nbdkit()
    supervisor = int(Path(f"/proc/{nbdkit}/stat").read_text().rpartition(")")[2].split()[1])
    assert Path(f"/proc/{supervisor}/cmdline").read_text().split("\0")[:-1] == command
    os.kill(supervisor, signal.SIGTERM)
    until(lambda: not server.client.answers())
    until(lambda: not Path(f"/proc/{nbdkit}").exists())
    revive(server.socket, said.append)
    assert len(said) == 1, "a server that ended in order stays away"
    server.process = None


def test_another_host_learns_which_version_a_name_stands_for(idle_server: Server) -> None:
    server = idle_server
    (port,) = free_ports(1)
    server.start("--listen", f"127.0.0.1:{port}")
    server.run("clone", "small:1", "c")
    there = RemoteServer(f"127.0.0.1:{port}")
    export = server.client.ask(Resolve("small:1")).export
    assert resolve_remote(there, "small:1") == (export, False)
    assert resolve_remote(there, "small:1+default") == (f"{export}+default", False)
    assert resolve_remote(there, export) == (export, False)
    assert resolve_remote(there, "c") == ("c", True)
    with pytest.raises(HostError, match="does not open none:1"):
        resolve_remote(there, "none:1")
    with pytest.raises(HostError, match="no NBD server answers"):
        negotiate(str(server.where / "nobody"), "small:1", 1)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("10.0.0.1:10809", True),
        ("[::1]:10809", True),
        ("host:1", True),
        ("/run/a:1", False),
        ("nbd.sock", False),
        (None, False),
    ],
)
def test_a_place_with_a_port_is_another_host(place: str | None, expected: bool) -> None:
    assert is_remote(place) is expected
