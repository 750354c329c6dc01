"""A store with small images, and servers in front of it."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from blockmap.control.client import Client
from blockmap.errors import HostError, StoreError
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from tests.image.layouts import archive, directory, file, layout
from tests.store.made import open_or_create
from tests.waiting import until

BLOCKMAP = [sys.executable, "-m", "blockmap.cli.main"]
START_S = 30.0


def content(seed: str, size: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


class Server:
    """`blockmap serve` in a process, with a store, a cache and a state of its own."""

    def __init__(self, where: Path, store: str | None = None) -> None:
        """`store` is a URL whose engine finds its settings in this process's environment; else a directory below `where`."""
        where.mkdir(exist_ok=True)
        self.where = where
        self.socket = where / "nbd.sock"
        self.log = where / "server.log"
        self.cache = where / "cache"
        self.store = where / "store"
        self.environment = {
            **os.environ,
            "BLOCKMAP_STORE": store or str(self.store),
            "BLOCKMAP_CACHE": str(self.cache),
            "BLOCKMAP_SOCKET": str(self.socket),
            "BLOCKMAP_STATE": str(where / "state"),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._has_store = False

    @property
    def client(self) -> Client:
        return Client(self.socket)

    def run(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        if arguments[0] == "import" and not self._has_store:
            with contextlib.suppress(StoreError):  # the command says it
                open_or_create(self.environment["BLOCKMAP_STORE"])
            self._has_store = True
        done = subprocess.run([*BLOCKMAP, *map(str, arguments)], env=self.environment, capture_output=True, text=True)
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def start(self, *arguments: str, by: Sequence[str] = ()) -> None:
        """Starts it, by another command where one is given."""
        with open(self.log, "ab") as log:
            command = [*by, *BLOCKMAP, "serve", *arguments]
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.wait_ready()

    def wait_ready(self) -> None:
        end = time.monotonic() + START_S
        while not self.client.answers():
            assert self.process is not None
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)

    def nbdkit(self) -> int:
        return self.client.status()["pid"]

    def wait_next(self, gone: int) -> None:
        """Waits until another nbdkit answers than the process that is about to go."""

        def is_next() -> bool:
            try:
                return self.nbdkit() != gone
            except HostError:
                return False

        until(is_next, self.said)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(signal.SIGTERM)
        return process.wait(30)

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self.socket}"

    def volume(self, export: str) -> tuple[Repository, str]:
        store, _ = open_store(self.environment["BLOCKMAP_STORE"])
        return Repository(store), export


@contextlib.contextmanager
def bare_server(where: Path) -> Iterator[Server]:
    """A server that has not been started, without a store; what it runs then ends with the block."""
    server = Server(where)
    try:
        yield server
    finally:
        if server.process is not None:
            with contextlib.suppress(ProcessLookupError):
                server.stop()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OCI layouts `small` (tags 1 and 2) with a few megabytes each."""
    where = tmp_path_factory.mktemp("images")
    base = archive([directory("bin"), *(file(f"data/{n}", content(f"base {n}", 300_000)) for n in range(12))])
    for tag in ("1", "2"):
        own = archive([file("version", tag.encode()), file("own", content(f"own {tag}", 1_000_000))])
        layout(where / tag, [base, own], tag=tag)
    return where


@pytest.fixture
def idle_server(images: Path, tmp_path: Path, need: Callable[..., None]) -> Iterator[Server]:
    """A server that has not been started, with small:1 in its store."""
    need("nbdkit")
    with bare_server(tmp_path) as server:
        server.run("import", f"oci:{images}/1:1", "small:1", "--platform", "linux/amd64")
        yield server


@pytest.fixture
def server(idle_server: Server) -> Server:
    idle_server.start()
    return idle_server
