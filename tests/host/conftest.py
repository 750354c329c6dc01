"""A host of its own per test: a store with a small image that runs, a cache, a state, and `blockmap` as people call it."""

import contextlib
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.control.client import Client
from blockmap.errors import HostError, StoreError
from blockmap.host import background
from blockmap.host.devices import loops
from blockmap.host.manager.place import LOCK, LOG, answers
from tests.image.layouts import archive, directory, file, layout, symlink
from tests.store.made import open_or_create
from tests.waiting import LIMIT_S, until

BLOCKMAP = [sys.executable, "-m", "blockmap.cli.main"]
CONTENT = hashlib.shake_128(b"content").digest(2_000_000)
PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1234:1235:An app:/home/app:/bin/sh\n"
GROUP = b"root:x:0:\napp:x:1235:\nextra:x:1236:other,app\n"


class Host:
    """Everything that blockmap keeps on one host, in one folder."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.socket = where / "run" / "nbd.sock"
        self.store, self.cache, self.state = where / "store", where / "cache", where / "state"
        self.environment = {
            **os.environ,
            "BLOCKMAP_STORE": str(self.store),
            "BLOCKMAP_CACHE": str(self.cache),
            "BLOCKMAP_SOCKET": str(self.socket),
            "BLOCKMAP_STATE": str(self.state),
        }
        self.client = Client(self.socket, 5)
        self.server: subprocess.Popen[bytes] | None = None

    def move_socket(self, folder: Path) -> None:
        """Has the next server listen in another folder."""
        self.socket = folder / "nbd.sock"
        self.environment["BLOCKMAP_SOCKET"] = str(self.socket)
        self.client = Client(self.socket, 5)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Starts a command."""
        return subprocess.Popen(
            [*BLOCKMAP, *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, text: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, with `text` on its standard input."""
        command = [*BLOCKMAP, *map(str, arguments)]
        return subprocess.run(
            command, env=self.environment, input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )

    def do(self, *arguments: object) -> str:
        """Runs a command that must succeed; what it printed. An import has a store to go to."""
        if arguments[0] == "import":
            with contextlib.suppress(StoreError):  # the command says it
                open_or_create(self.environment["BLOCKMAP_STORE"])
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr + self.said()
        return done.stdout

    def serve(self, *arguments: str) -> None:
        with open(self.where / "log", "wb") as log:
            self.server = subprocess.Popen(
                [*BLOCKMAP, "serve", *arguments], env=self.environment, stdout=log, stderr=log
            )
        self.wait_ready()

    def wait_ready(self) -> None:
        """Waits until the server has said so; it says it once for each nbdkit that it started."""
        server = self.server
        assert server is not None
        starts = self.said().count("starting it again") + 1
        until(lambda: self.said().count("ready:") >= starts or server.poll() is not None, self.said)
        assert server.poll() is None, self.said()

    def stop(self) -> int:
        assert self.server is not None
        self.server.terminate()
        code = self.server.wait(LIMIT_S)
        self.server = None
        return code

    def nbdkit(self) -> int:
        """The process that serves now."""
        return self.client.status()["pid"]

    def kill_nbdkit(self) -> None:
        """Kills it; another is there afterwards."""
        starts = self.said().count("starting it again")
        os.kill(self.nbdkit(), signal.SIGKILL)
        until(lambda: self.said().count("starting it again") > starts, self.said)
        self.wait_ready()

    def manager(self) -> int | None:
        """The process that attaches devices, if one runs."""
        try:
            with open(self.state / LOCK, "rb+") as file:
                return None if background.take(file.fileno()) else int(file.read().split()[0])
        except (FileNotFoundError, IndexError):
            return None

    def end_manager(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends the process that attaches devices; the next attach or detach starts another."""
        pid = self.manager()
        if pid is not None:
            os.kill(pid, number)
            line = Path(f"/proc/{pid}/cmdline")  # empty for a zombie
            until(lambda: self.manager() != pid and not (line.exists() and line.read_bytes()), self.said)

    def said(self) -> str:
        """All that servers, and what attaches devices, logged."""
        logs = [self.where / "log", self.socket.with_name("nbd.sock.log"), self.state / LOG]
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self.socket}"

    def leftovers(self) -> list[str]:
        """What attaches and runs left on this host: mounts, loop devices, folders."""
        text = Path("/proc/self/mountinfo").read_text()
        found = [line for line in text.splitlines() if str(self.state) in line]
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):  # detached meanwhile
                found += [shown] if str(self.state) in (shown := backing.read_text()) else []
        folders = [*self.state.glob("devices/*"), *self.state.glob("runs/run-*")]
        return found + [str(path) for path in folders]

    def end(self) -> None:
        """Takes all apart that a failed test may have left."""
        for container in self.state.glob("runs/run-*/runc/*"):
            command = ["runc", "--root", str(container.parent), "delete", "--force", container.name]
            subprocess.run(command, check=False)
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        points = [point for point in points if point.startswith(f"{self.where}/")]
        shown = [loop for point in points for loop in loops.showing(f"{point}/nbd")]  # while the path is known
        for point in points[::-1]:
            subprocess.run(["umount", "-l", point], check=False)
        for loop in shown:
            subprocess.run(["losetup", "-d", loop], check=False)
        self.end_manager()
        if self.server is not None:
            self.stop()
        with contextlib.suppress(HostError):  # one that `attach` or `run` started
            pid = self.nbdkit()
            os.kill(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGTERM)
            until(lambda: not Path(f"/proc/{pid}").exists())


def rows(host: Host) -> list[tuple[str, int]]:
    """Device and nbdfuse process of each attached device."""
    database = sqlite3.connect(host.state / "attachments.db")
    try:
        return database.execute("SELECT path, json_extract(state, '$.pid') FROM devices").fetchall()
    finally:
        database.close()


def faulty(host: Host, module: str, name: str, code: str, *arguments: object) -> subprocess.Popen[str]:
    """`blockmap`, with a fault in one function of `module`: `code` has `real`, and gives what is called instead."""
    script = f"""
import os, signal, sys, time
import {module} as module
from blockmap.cli.main import main
from blockmap.errors import HostError
real = module.{name}
{code}
module.{name} = instead
sys.argv = ["blockmap", *sys.argv[1:]]
main()
"""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=host.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@contextlib.contextmanager
def faulty_manager(host: Host, module: str, name: str, code: str) -> Iterator[None]:
    """Has devices be attached by a process with a fault in one function, as `faulty` has it."""
    host.end_manager()
    process = faulty(host, module, name, code, "devices")
    try:
        until(lambda: host.manager() == process.pid or process.poll() is not None)
        until(lambda: answers(host.state))
        yield
    finally:
        process.terminate()
        process.communicate(timeout=LIMIT_S)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory, need: Callable[..., None]) -> Path:
    """An OCI layout whose tags 1 and 2 differ in one file, and run busybox."""
    need("busybox")
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    tools = [symlink(f"bin/{name}", "busybox") for name in ("sh", "cat", "id", "sleep", "ls", "env", "pwd", "hostname")]
    folders = [directory(name) for name in ("bin", "etc", "data", "home", "root", "proc", "dev", "sys")]
    base = archive(
        [
            *folders,
            directory("home/app", uid=1234, gid=1235),
            file("bin/busybox", busybox, mode=0o755),
            *tools,
            file("etc/passwd", PASSWD),
            file("etc/group", GROUP),
            file("data/content", CONTENT),
        ]
    )
    where = tmp_path_factory.mktemp("image")
    for tag in ("1", "2"):
        config = {"Cmd": ["cat", "/etc/version"], "Env": ["PATH=/bin", "COLOUR=blue"], "WorkingDir": "/data"}
        layout(where / tag, [base, archive([file("etc/version", tag.encode())])], tag=tag, config={"config": config})
    return where


@pytest.fixture(scope="session")
def store(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that has the image as app:1 and app:2."""
    made = Host(tmp_path_factory.mktemp("store"))
    made.do("create")
    for tag in ("1", "2"):
        made.do("import", "--quiet", f"oci:{image}/{tag}:{tag}", f"app:{tag}", "--platform", "linux/amd64")
    return made.store


@pytest.fixture
def host(store: Path, tmp_path: Path, need: Callable[..., None]) -> Iterator[Host]:
    """A host without a server, with app:1 and app:2 in its store."""
    need("nbdkit")
    made = Host(tmp_path)
    shutil.copytree(store, made.store)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users can go through, as they cannot through those of pytest."""
    with tempfile.TemporaryDirectory(prefix="public-") as where:
        os.chmod(where, 0o755)
        yield Path(where)


@pytest.fixture
def serving(host: Host) -> Host:
    """A host with a server."""
    host.serve()
    return host


@pytest.fixture
def mounting(host: Host, need: Callable[..., None], need_root: None) -> Host:
    """A host that can attach, without a server."""
    need("nbdfuse", "fusermount3", "losetup")
    return host


@pytest.fixture(scope="module")
def box(
    store: Path, tmp_path_factory: pytest.TempPathFactory, need: Callable[..., None], need_root: None
) -> Iterator[Host]:
    """A host for containers, which all tests of a module share."""
    from tests.host.box import serving_box  # which imports this module

    need("nbdkit", "nbdfuse", "fusermount3", "losetup", "runc")
    with serving_box(store, tmp_path_factory.mktemp("box")) as host:
        yield host
        assert host.leftovers() == []
