"""Starts of real programs over a link that fails in every way that netshape knows: each succeeds, with the right bytes.

Run with -s: prints how much slower each start was than over the same link without faults.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.refs import parse_reference
from blockmap.format.tree import leaves
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.volume.content import stored_reader
from blockmap.volume.opening import find_version
from tests.faults.links import need_shared, netshape
from tests.host.conftest import BLOCKMAP, Host
from tests.serve.nbd import Nbd
from tests.store.servers import nginx
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.root]

CORPUS = Path(os.environ.get("BLOCKMAP_CORPUS") or "/nonexistent")
IMAGES = ("redis", "postgres", "python-flask")
FAULTS = {
    "1 % of requests fail": ("--fail-rate", "0.01", "--fail-mode", "mix", "--stall-s", "5", "--seed", "7"),
    "reset every 256 KiB": ("--drop-after", "262144"),
    "a stall of 5 s in each connection": ("--stall-after", "1000000", "--stall-s", "5"),
    "a corrupt byte in each connection": ("--corrupt-after", "700000"),
    "refused for 10 s": ("--refuse-s", "10"),
}
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


@pytest.mark.parametrize("name", IMAGES)
def test_starts_succeed_whatever_the_link_does(
    name: str, corpus_store: Path, tmp_path: Path, need: Callable[..., None]
) -> None:
    need("nginx", "nbdkit", "nbdfuse", "losetup")
    with serving(tmp_path / "plain", corpus_store, ()) as (host, _):
        plain = start(host, name)
        check_bytes(host, corpus_store, name)
    print(f"\n{name}: {plain:.1f} s over 20 ms and 1 Gbit/s")
    for number, (fault, arguments) in enumerate(FAULTS.items()):
        with serving(tmp_path / str(number), corpus_store, arguments) as (host, relay):
            refuse = arguments[0] == "--refuse-s"
            took = start(host, name, lambda: os.kill(relay, signal.SIGUSR1) if refuse else None)  # noqa: B023
            check_bytes(host, corpus_store, name)
            status = host.client.request("status")["fetch"]
        print(f"{name}: {fault}: {took:.1f} s, {took - plain:+.1f} s; {status}")


def test_a_minute_without_a_store_costs_patient_readers_no_error(
    corpus_store: Path, tmp_path: Path, need: Callable[..., None]
) -> None:
    need("nginx", "nbdkit", "nbdfuse", "losetup")
    with serving(tmp_path, corpus_store, ("--refuse-s", "60"), "--outage", "wait=90") as (host, relay):
        took = start(host, "redis", lambda: os.kill(relay, signal.SIGUSR1))
        check_bytes(host, corpus_store, "redis")
        assert host.client.request("status")["fetch"]["failed"] >= 1
    print(f"\nredis: away for 60 s: {took:.1f} s")
    assert took > 55


def content_offsets(store: Path, image: str, count: int) -> list[int]:
    """Offsets in bytes, all over the volume, where it has content: holes are read without the store."""
    repository = Repository(open_store(str(store))[0])
    root = find_version(repository, parse_reference(image)).version.root
    found = [
        (span * SPAN + start) * BLOCK for span, leaf in leaves(root, repository.node) for start in leaf.starts.tolist()
    ]
    return found[len(found) // count :: len(found) // count][:count]


def test_impatient_readers_fail_at_once_and_recover(
    corpus_store: Path, tmp_path: Path, need: Callable[..., None]
) -> None:
    need("nginx", "nbdkit")
    with serving(tmp_path, corpus_store, ("--refuse-s", "20"), "--outage", "fail") as (host, relay):
        with Nbd(host.socket, "postgres:1") as nbd:
            os.kill(relay, signal.SIGUSR1)
            took = []
            for offset in content_offsets(corpus_store, "postgres:1", 50):
                began = time.monotonic()
                with pytest.raises(OSError, match="error"):
                    nbd.read(offset, 4096)
                took.append(time.monotonic() - began)
            print(f"\nfirst failure after {took[0]:.2f} s, the others after {max(took[1:]):.3f} s at most")
            assert max(took[1:]) < 1.0
            until(lambda: not host.client.request("status")["fetch"]["away"])
        check_bytes(host, corpus_store, "postgres")
