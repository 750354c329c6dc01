"""Starts of real programs from a store behind a relay."""

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from blockmap.format.refs import parse_reference
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from tests.faults.links import need_shared, netshape
from tests.host.conftest import BLOCKMAP, Host
from tests.serve.nbd import Nbd
from tests.store.servers import nginx

CORPUS = Path(os.environ.get("BLOCKMAP_CORPUS") or "/nonexistent")
IMAGES = ("redis", "postgres", "python-flask")
START_S = 600


@pytest.fixture(scope="session")
def corpus_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory store with the images."""
    need_shared("corpus/run-startup")
    if not all((CORPUS / name).exists() for name in IMAGES):
        pytest.skip(f"the corpus is not in {CORPUS}: name its folder in BLOCKMAP_CORPUS")
    host = Host(tmp_path_factory.mktemp("corpus"))
    for name in IMAGES:
        host.do("import", f"oci:{CORPUS}/{name}:1", f"{name}:1")
    return host.store


@contextmanager
def serving(where: Path, store: Path, relay: tuple[str, ...], *options: str) -> Iterator[tuple[Host, int]]:
    """A host with an empty cache that serves the store over a link with faults; and the process of the link."""
    with ExitStack() as stack:
        (where / "nginx").mkdir(parents=True)
        url = stack.enter_context(nginx(where / "nginx", store))
        port, process = stack.enter_context(netshape(int(url.rpartition(":")[2]), *relay))
        host = Host(where)
        (where / "run").mkdir()
        host.environment["BLOCKMAP_STORE"] = f"http://127.0.0.1:{port}"
        host.serve(*options)
        stack.callback(host.stop)
        yield host, process


def start(host: Host, name: str, meanwhile: Callable[[], object] = lambda: None) -> float:
    """Seconds from attaching an image to its program being ready."""
    mount, scratch, root = (host.where / each for each in ("mount", "scratch", "root"))
    for each in (mount, scratch, root):
        each.mkdir(exist_ok=True)
    began = time.monotonic()
    with ExitStack() as stack:
        done = subprocess.run(
            [*BLOCKMAP, "attach", f"{name}:1", str(mount)], env=host.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr + host.said()
        stack.callback(host.do, "detach", mount)
        for command in (
            ["mount", "-t", "tmpfs", "tmpfs", str(scratch)],
            ["mkdir", f"{scratch}/upper", f"{scratch}/work"],
            [
                "mount", "-t", "overlay", "overlay", "-o",
                f"lowerdir={mount},upperdir={scratch}/upper,workdir={scratch}/work", str(root),
            ],
        ):  # fmt: skip
            subprocess.run(command, check=True)
            if command[0] == "mount":
                stack.callback(subprocess.run, ["umount", command[-1]], check=True)
        command = [str(need_shared("corpus/run-startup")), "--timeout", str(START_S), "--since", str(began)]
        with subprocess.Popen([*command, f"{name}:1", str(root)], stdout=subprocess.PIPE, text=True) as program:
            meanwhile()
            assert program.stdout is not None
            said = program.stdout.read()
        assert program.returncode == 0, said + host.said()
    return float(said.split()[0])


def check_bytes(host: Host, store: Path, name: str) -> None:
    """Reads of ranges all over the image against what is stored."""
    repository = Repository(open_store(str(store))[0])
    read = stored_reader(repository, find_version(repository, parse_reference(f"{name}:1")).version.root)
    chosen = random.Random(name)
    with Nbd(host.socket, f"{name}:1") as nbd:
        for _ in range(60):
            offset = chosen.randrange(80 << 20)
            assert nbd.read(offset, 200_000) == read(offset, 200_000)
