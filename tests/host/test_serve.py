"""`blockmap serve`: starting, dying, starting again, stopping."""

import contextlib
import os
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.control.client import Client
from blockmap.control.messages import Resolve
from blockmap.errors import HostError
from tests.host.conftest import BLOCKMAP, Host
from tests.waiting import LIMIT_S, free_ports, until


def greeted(family: socket.AddressFamily, address: str | tuple[str, int]) -> socket.socket:
    """A client that says nothing after it was greeted."""
    client = socket.socket(family)
    client.settimeout(LIMIT_S)
    client.connect(address)
    assert client.recv(18, socket.MSG_WAITALL).startswith(b"NBDMAGIC")
    return client


def opened(host: Host, export: str) -> socket.socket:
    """A client that has opened an export, and does nothing with it."""
    client = greeted(socket.AF_UNIX, str(host.socket))
    client.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(export)) + export.encode())  # NBD_OPT_EXPORT_NAME
    assert struct.unpack(">QH", client.recv(10, socket.MSG_WAITALL))[0] == 16 << 30
    return client


def size(uri: str) -> int:
    done = subprocess.run(["nbdinfo", "--size", uri], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    return int(done.stdout)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_it_says_that_it_is_ready_and_who_may_connect(serving: Host) -> None:
    assert f"ready: serving {serving.store} on {serving.socket}" in serving.said()
    assert stat.S_IMODE(serving.socket.stat().st_mode) == 0o660
    assert stat.S_IMODE(serving.socket.with_name("nbd.sock.ctl").stat().st_mode) == 0o600


def test_the_sockets_directory_may_be_entered_whatever_the_umask(host: Host) -> None:
    old = os.umask(0o077)
    try:
        host.socket = host.where / "a" / "b.sock"
        host.environment["BLOCKMAP_SOCKET"] = str(host.socket)
        process = host.start("serve", "--idle-exit", "0.2")
        process.communicate(timeout=LIMIT_S)
    finally:
        os.umask(old)
    assert stat.S_IMODE(host.socket.parent.stat().st_mode) == 0o755


def test_sockets_of_a_killed_server_are_replaced_and_its_nbdkit_ends(serving: Host) -> None:
    nbdkit = serving.nbdkit()
    assert serving.server is not None
    serving.server.kill()
    serving.server.wait()
    assert serving.socket.exists()
    until(lambda: gone(nbdkit))
    serving.serve()
    assert serving.nbdkit() != nbdkit
    assert serving.stop() == 0
    assert not serving.socket.exists()


@contextlib.contextmanager
def orphan(host: Host) -> Iterator[int]:
    """An nbdkit that does not end yet although its server was killed."""
    nbdkit = host.nbdkit()
    os.kill(nbdkit, signal.SIGSTOP)
    try:
        assert host.server is not None
        host.server.kill()
        host.server.wait()
        host.server = None
        yield nbdkit
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(nbdkit, signal.SIGKILL)


@pytest.mark.parametrize("shared", ["both", "socket", "cache"])
def test_the_next_server_waits_for_an_nbdkit_that_a_killed_one_left(serving: Host, shared: str) -> None:
    with orphan(serving) as nbdkit:
        if shared == "socket":
            serving.environment["BLOCKMAP_CACHE"] = str(serving.where / "another")
        elif shared == "cache":
            serving.socket = serving.where / "run" / "another.sock"
            serving.environment["BLOCKMAP_SOCKET"] = str(serving.socket)
            serving.client = Client(serving.socket, 5)
        with open(serving.where / "log", "wb") as log:
            serving.server = subprocess.Popen([*BLOCKMAP, "serve"], env=serving.environment, stdout=log, stderr=log)
        until(lambda: "has outlived its server" in serving.said(), serving.said)
        assert not gone(nbdkit)
        os.kill(nbdkit, signal.SIGCONT)
        serving.wait_ready()
        until(lambda: gone(nbdkit))
    lines = [line for line in serving.said().splitlines() if str(nbdkit) in line]
    assert [line[21:] for line in lines] == [
        f"nbdkit, process {nbdkit}, has outlived its server, which was killed: ending it first"
    ]
    assert serving.nbdkit() != nbdkit


@pytest.mark.long
def test_an_nbdkit_that_a_killed_server_left_is_killed_in_the_end(serving: Host) -> None:
    with orphan(serving) as nbdkit:
        began = time.monotonic()
        serving.serve()
        assert 9 < time.monotonic() - began < 20
        until(lambda: gone(nbdkit))


def test_a_live_socket_of_another_program_is_left_alone(host: Host) -> None:
    host.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(host.socket))
        other.listen()
        done = host.run("serve")
        assert done.returncode == 1
        assert "another program listens at" in done.stderr
        assert host.socket.is_socket()
    host.socket.unlink()
    host.socket.write_text("notes")
    assert "is not a socket" in host.run("serve").stderr
    assert host.socket.read_text() == "notes"


def test_what_cannot_start_says_why_at_once(host: Host) -> None:
    began = time.monotonic()
    host.cache.write_text("a file")
    done = host.run("serve")
    assert done.returncode == 1
    assert done.stderr.startswith(f"blockmap: cannot use the cache {host.cache}: ")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < 20
    for arguments, said in (
        (["--store", host.where / "nothing"], "is not a blockmap store"),
        (["--listen", "nonsense"], "is not HOST:PORT"),
        (["--listen", "192.0.2.1:9"], "cannot listen on 192.0.2.1:9"),
        (["--socket", host.where / ("x" * 120)], "name another with --socket"),
        (["--socket", "/proc/no/nbd.sock"], "cannot make /proc/no/nbd.sock"),
    ):
        done = host.run("serve", *arguments)
        assert done.returncode in (1, 2)
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_a_cache_that_is_in_use_is_named_in_one_line(serving: Host) -> None:
    done = serving.run("serve", "--socket", serving.where / "other" / "nbd.sock")
    assert done.returncode == 1
    assert done.stderr == (
        f"blockmap: the cache {serving.cache} is in use by process {serving.nbdkit()}: one server owns a cache, name another "
        "directory with --cache\n"
    )


@pytest.mark.root
def test_a_cache_that_cannot_be_written_is_named_in_one_line(host: Host, need_root: None) -> None:
    host.cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", host.cache], check=True)
    try:
        done = host.run("serve")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith(f"blockmap: cannot use the cache {host.cache}: Read-only file system")
    finally:
        subprocess.run(["umount", host.cache], check=True)


def test_what_it_keeps_is_private(host: Host) -> None:
    old = os.umask(0)
    try:
        host.serve()
        assert size(host.uri("app:1")) == 16 << 30
    finally:
        os.umask(old)
    kept = [host.cache, *host.cache.rglob("*")]
    assert {path: oct(path.stat().st_mode) for path in kept if path.stat().st_mode & 0o077} == {}


@pytest.mark.root
def test_a_cache_of_another_user_is_refused(host: Host, need_root: None) -> None:
    host.cache.mkdir()
    os.chown(host.cache, 65534, 65534)
    for command in (["serve"], ["import", host.where, "x:1"], ["attach", "app:1", host.where]):
        done = host.run(*command)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert f"{host.cache} belongs to another user (uid 65534)" in done.stderr
    assert list(host.cache.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM])
def test_a_server_that_ends_says_why(serving: Host, number: signal.Signals) -> None:
    nbdkit = serving.nbdkit()
    assert serving.server is not None
    serving.server.send_signal(number)
    assert serving.server.wait(LIMIT_S) == 0
    serving.server = None
    assert f"{number.name}: stopping" in serving.said()
    assert gone(nbdkit)
    assert not serving.socket.exists()


def test_clients_of_a_killed_nbdkit_come_back_to_the_next(serving: Host, need: Callable[..., None]) -> None:
    need("nbdinfo")
    for _ in range(3):
        serving.kill_nbdkit()
        assert size(serving.uri("app:1")) == 16 << 30
    os.kill(serving.nbdkit(), signal.SIGKILL)
    assert size(serving.uri("app:1")) == 16 << 30  # the socket never stopped listening
    assert serving.said().count("starting it again") == 4


@pytest.mark.long
def test_an_nbdkit_that_cannot_start_again_is_given_up_with_its_cause(serving: Host) -> None:
    (serving.store / "format").rename(serving.where / "format")
    for path in serving.cache.glob("names.db*"):  # with what it knows of the store it would start all the same
        path.unlink()
    os.kill(serving.nbdkit(), signal.SIGKILL)
    assert serving.server is not None
    assert serving.server.wait(LIMIT_S) == 1
    serving.server = None
    assert serving.said().count("starting it again") > 3
    assert "is not a blockmap store" in serving.said().splitlines()[-1]
    assert not serving.socket.exists()


def test_it_serves_again_once_the_store_is_back(serving: Host) -> None:
    (serving.store / "format").rename(serving.where / "format")
    for path in serving.cache.glob("names.db*"):  # with what it knows of the store it would start all the same
        path.unlink()
    os.kill(serving.nbdkit(), signal.SIGKILL)
    until(lambda: "starting it again in" in serving.said())
    assert serving.said().count("ready:") == 1
    (serving.where / "format").rename(serving.store / "format")
    until(lambda: serving.said().count("ready:") == 2, serving.said)
    assert serving.nbdkit()


@pytest.mark.parametrize("where", ["127.0.0.1", "0.0.0.0"])
def test_idle_clients_do_not_delay_its_end(host: Host, need: Callable[..., None], where: str) -> None:
    need("nbdinfo")
    (port,) = free_ports(1)
    host.serve("--listen", f"{where}:{port}")
    assert ("no authentication" in host.said()) == (where == "0.0.0.0")
    assert size(f"nbd://127.0.0.1:{port}/app:1") == size(host.uri("app:1")) == 16 << 30
    clients = [
        greeted(socket.AF_UNIX, str(host.socket)),
        greeted(socket.AF_INET, ("127.0.0.1", port)),
        greeted(socket.AF_UNIX, str(host.socket)),
    ]
    began = time.monotonic()
    assert host.stop() == 0
    assert time.monotonic() - began < 8  # less than it takes until nbdkit is killed
    for client in clients:
        assert client.recv(1) == b""
        client.close()


@pytest.mark.long
def test_a_hung_nbdkit_is_killed_in_the_end(serving: Host) -> None:
    nbdkit = serving.nbdkit()
    os.kill(nbdkit, signal.SIGSTOP)
    began = time.monotonic()
    assert serving.stop() == 0
    assert time.monotonic() - began < 20
    assert gone(nbdkit)


def test_interrupts_stop_it_too(serving: Host) -> None:
    assert serving.server is not None
    serving.server.send_signal(signal.SIGINT)
    assert serving.server.wait(LIMIT_S) == 0
    serving.server = None


def test_it_stays_while_an_export_is_open_and_ends_when_none_is(host: Host) -> None:
    host.serve("--idle-exit", "0.5")
    assert host.server is not None
    with opened(host, "app:1"), pytest.raises(subprocess.TimeoutExpired):
        host.server.wait(2)
    assert host.server.wait(LIMIT_S) == 0
    host.server = None


def test_requests_alone_keep_it(host: Host) -> None:
    host.serve("--idle-exit", "0.5")
    assert host.server is not None
    end = time.monotonic() + 2
    while time.monotonic() < end:
        host.client.ask(Resolve("app:1"))
    assert host.server.poll() is None
    assert host.server.wait(LIMIT_S) == 0
    host.server = None
    assert "nobody has used an export for 0.5 s" in host.said()


def test_a_client_without_a_server_says_what_to_do(host: Host) -> None:
    with pytest.raises(HostError, match="blockmap serve"):
        host.client.status()
    done = host.run("status")
    assert done.returncode == 3
    assert "no blockmap server answers" in done.stderr
