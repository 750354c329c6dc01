"""Many clients of one server: what each costs, how many there may be, and how many reads the server has under way at once."""

import contextlib
import mmap
import os
import random
import resource
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.host.devices.nbdfuse import NbdFuse
from blockmap.host.serve.nbdkit import THREADS
from blockmap.store.memory import MemoryStore
from blockmap.store.opening import create_store
from tests.serve.conftest import Server, bare_server
from tests.serve.nbd import CMD_READ, Nbd, RefusedError
from tests.store.misbehaving import Misbehaving, misbehaving
from tests.volume.building import name, publish
from tests.waiting import until

FILES = 3
"""Descriptors of a client."""
OTHERS = 8
"""Threads and descriptors that come and go with what a server does besides."""


@pytest.fixture
def many_files() -> Iterator[None]:
    """Lets this process have more than the usual 1,024 descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def use_of(pid: int) -> tuple[int, int]:
    """Threads and descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


def greeted(client: socket.socket, path: Path) -> bool:
    """Connects, and says nothing; returns False if the server hangs up."""
    client.settimeout(30)
    client.connect(str(path))
    return client.recv(18, socket.MSG_WAITALL) != b""


def waiting(server: Server) -> int:
    """Reads under way that the cache does not answer at once."""
    return server.client.status()["exports"][0]["waiting"]


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_what_a_client_costs_comes_back_when_it_leaves(server: Server, many_files: None, count: int) -> None:
    pid = server.nbdkit()
    with Nbd(server.socket, "small:1") as nbd:
        expected = nbd.read(0, BLOCK)
    until(lambda: server.client.status()["exports"] == [])
    threads, files = use_of(pid)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Nbd(server.socket, "small:1")) for _ in range(count)]
        for nbd in clients:
            assert nbd.read(0, BLOCK) == expected
        now = use_of(pid)
        assert now[0] - threads == pytest.approx(count * THREADS, abs=OTHERS)
        assert now[1] - files == pytest.approx(count * FILES, abs=OTHERS)
        (export,) = server.client.status()["exports"]
        assert export["connections"] == count
    until(lambda: use_of(pid)[0] <= threads + OTHERS and use_of(pid)[1] <= files + OTHERS, lambda: str(use_of(pid)))
    assert server.client.status()["exports"] == []


def test_more_clients_than_the_limits_allow_are_refused_and_harm_nobody(idle_server: Server) -> None:
    server = idle_server
    server.start(by=["prlimit", "--nofile=64:300"])
    until(lambda: "ready: " in server.said())
    assert "; takes up to 50 connections (300 open files (LimitNOFILE))" in server.said()
    assert resource.prlimit(server.nbdkit(), resource.RLIMIT_NOFILE) == (300, 300)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Nbd(server.socket, "small:1"))
        others = [stack.enter_context(Nbd(server.socket, "small:1")) for _ in range(49)]
        for _ in range(20):
            with pytest.raises(RefusedError):
                Nbd(server.socket, "small:1")
        until(lambda: server.said().count("'small:1' was refused: 50 connections are open, and the server's") == 5)
        assert first.read(20 << 20, 1 << 20) == others[-1].read(20 << 20, 1 << 20)
        others.pop().close()
        until(lambda: server.client.status()["exports"][0]["connections"] == 49)
        Nbd(server.socket, "small:1").close()
        # Those who say nothing get no further than a descriptor allows.
        silent = 0
        while greeted(stack.enter_context(socket.socket(socket.AF_UNIX)), server.socket):
            silent += 1
        assert silent < 50
        until(lambda: "a client was refused, as too many are connected: uid " in server.said())
        assert first.read(30 << 20, 1 << 20) == others[-1].read(30 << 20, 1 << 20)
        assert server.client.status()["opens"]
    until(lambda: server.client.status()["exports"] == [])
    Nbd(server.socket, "small:1").close()
    assert "Traceback" not in server.said()


@contextlib.contextmanager
def far_store(where: Path) -> Iterator[tuple[Server, Misbehaving, list[tuple[int, bytes]]]]:
    """A server of far:1, whose store can be told to answer nothing; and the volume's data by block, the first of which is
    fetched alone."""
    chosen, objects = random.Random(1), MemoryStore()
    pieces = [(block, chosen.randbytes(16 * BLOCK)) for block in (0, *range(2048, 2048 + 64 * 256, 256))]
    between = (16, chosen.randbytes(5 << 20))
    store, _ = create_store(str(where / "store"))
    name(store, publish(store, [pieces[0], between, *pieces[1:]], 5 * SPAN), "far", "1")
    for path in (where / "store").rglob("*"):
        if path.is_file():
            objects.create(str(path.relative_to(where / "store")), [path.read_bytes()])
    with misbehaving(objects) as web, bare_server(where) as server:
        web.prefix = "packs/"
        server.environment["BLOCKMAP_STORE"] = web.url
        server.start()
        yield server, web, pieces
        web.ended.set()


def test_64_reads_wait_for_the_store_at_once_and_hits_do_not_wait(tmp_path: Path, need: Callable[..., None]) -> None:
    need("nbdkit")
    with far_store(tmp_path) as (server, web, pieces), contextlib.ExitStack() as stack:
        readers = [stack.enter_context(Nbd(server.socket, "far:1")) for _ in range(8)]
        other = stack.enter_context(Nbd(server.socket, "far:1"))
        assert other.read(0, BLOCK) == pieces[0][1][:BLOCK]
        web.fault = "stall"
        for number, (block, _) in enumerate(pieces[1:]):
            readers[number % 8].send(CMD_READ, block * BLOCK, BLOCK, number)
        until(lambda: waiting(server) == 64, lambda: f"{waiting(server)} wait")
        assert other.read(0, BLOCK) == pieces[0][1][:BLOCK]
        web.ended.set()
        for number in range(64):
            answer = readers[number % 8].take(16 + BLOCK)
            assert answer[4:8] == bytes(4)
            assert answer[16:] == pieces[1 + int.from_bytes(answer[8:16])][1][:BLOCK]


@pytest.mark.root
@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")  # nbdfuse outlives whoever attached the device
def test_a_device_answers_while_a_read_of_it_waits(tmp_path: Path, need: Callable[..., None], need_root: None) -> None:
    need("nbdkit", "nbdfuse", "fusermount3", "losetup")

    def read(block: int) -> bytes:
        with mmap.mmap(-1, BLOCK) as page:
            assert os.preadv(fd, [page], block * BLOCK) == BLOCK
            return page[:]

    with far_store(tmp_path) as (server, web, pieces), ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
        device = NbdFuse().attach(str(server.socket), "far:1", tmp_path / "device")
        stack.callback(NbdFuse().detach, device)
        fd = os.open(device.path, os.O_RDONLY | os.O_DIRECT)
        stack.callback(os.close, fd)
        assert read(0) == pieces[0][1][:BLOCK]
        web.fault = "stall"
        late = pool.submit(read, pieces[1][0])
        stack.callback(web.ended.set)
        until(lambda: waiting(server) == 1)
        for _ in range(3):
            assert pool.submit(read, 0).result(30) == pieces[0][1][:BLOCK]
        assert not late.done()
        web.ended.set()
        assert late.result(30) == pieces[1][1][:BLOCK]
