"""A web server with the store goes away under a server: what waits, what fails, what is served all the while."""

import errno
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from blockmap.control.messages import Resolve
from blockmap.format.refs import parse_reference
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from tests.serve.conftest import Server
from tests.serve.nbd import Nbd
from tests.store.servers import configured
from tests.waiting import LIMIT_S, free_ports, until


class Web:
    """nginx over a directory store, stopped and started again at one address."""

    def __init__(self, where: Path, store: Path) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._where, self._store = where, store
        self._running = ExitStack()

    def start(self) -> None:
        text = f"server {{ listen 127.0.0.1:{self.port}; root {self._store}; }}"
        self._running.enter_context(configured(self._where, self.port, text))

    def stop(self) -> None:
        self._running.close()


@pytest.fixture
def web(idle_server: Server, tmp_path: Path, need: Callable[..., None]) -> Iterator[Web]:
    need("nginx")
    (tmp_path / "nginx").mkdir()
    made = Web(tmp_path / "nginx", idle_server.store)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def good(idle_server: Server) -> bytes:
    repository, _ = idle_server.volume("small:1")
    return stored_reader(repository, find_version(repository, parse_reference("small:1")).version.root)(0, 60 << 20)


@pytest.fixture
def cold(good: bytes) -> int:
    """Where a file's content is: the nodes that say so come with the opening, and zeros need no store."""
    return next(at for at in range(1 << 20, len(good), 1 << 16) if all(good[at + n * 4096] for n in range(16)))


def is_away(server: Server) -> bool:
    return bool(server.client.status()["fetch"]["store_away"])


def test_a_patient_read_waits_and_cached_ones_are_served(idle_server: Server, web: Web, good: bytes, cold: int) -> None:
    server = idle_server
    server.start("--store", web.url, "--outage", "wait=3600")
    with Nbd(server.socket, "small:1") as hot, Nbd(server.socket, "small:1") as nbd, ThreadPoolExecutor(1) as pool:
        web.stop()
        waiting = pool.submit(nbd.read, cold, 60_000)
        until(lambda: is_away(server))
        assert not waiting.done()
        web.start()
        assert waiting.result(LIMIT_S) == good[cold : cold + 60_000]
        web.stop()
        for _ in range(100):
            assert hot.read(cold, 4096) == good[cold : cold + 4096]
        web.start()
    assert server.client.status()["fetch"]["outages"] == 1
    until(lambda: "the store answers again" in server.said())


def test_impatient_reads_fail_at_once_and_recover_by_themselves(
    idle_server: Server, web: Web, good: bytes, cold: int
) -> None:
    server = idle_server
    server.start("--store", web.url, "--outage", "wait=3600", "--outage", "small:1=fail")
    pinned = server.client.ask(Resolve("small:1")).export
    with Nbd(server.socket, "small:1") as nbd, Nbd(server.socket, pinned) as attached:
        web.stop()
        for client in (nbd, attached):
            with pytest.raises(OSError, match="error") as caught:
                client.read(cold, 4096)
            assert caught.value.errno == errno.EIO
        began = time.monotonic()
        for _ in range(50):
            with pytest.raises(OSError, match="error"):
                nbd.read(cold, 4096)
        assert time.monotonic() - began < 5, "without a connection each"
        web.start()
        until(lambda: not is_away(server))
        assert nbd.read(cold, 4096) == good[cold : cold + 4096]
        assert attached.read(cold, 4096) == good[cold : cold + 4096]


def test_waiting_ends_with_an_error(idle_server: Server, web: Web, cold: int) -> None:
    idle_server.start("--store", web.url, "--outage", "wait=0.5")
    with Nbd(idle_server.socket, "small:1") as nbd:
        web.stop()
        with pytest.raises(OSError, match="error") as caught:
            nbd.read(cold, 4096)
        assert caught.value.errno == errno.EIO
        web.start()


def test_a_server_that_is_told_to_end_lets_waiting_reads_go(idle_server: Server, web: Web, cold: int) -> None:
    server = idle_server
    server.start("--store", web.url, "--outage", "wait=3600")
    with Nbd(server.socket, "small:1") as nbd, ThreadPoolExecutor(1) as pool:
        web.stop()
        waiting = pool.submit(nbd.read, cold, 4096)
        until(lambda: is_away(server))
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 8
        with pytest.raises(
            ConnectionError
        ):  # no answer: the kernel's nbd asks the next server, and an error would be final
            waiting.result(LIMIT_S)
        web.start()


def test_what_makes_no_sense_is_said_at_once(idle_server: Server) -> None:
    done = idle_server.run("serve", "--outage", "small:1=never", check=False)
    assert done.returncode == 2
    assert "wait=SECONDS" in done.stderr
