"""Two hosts that move one name: processes with caches of their own, in networks of their own where that can be."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockmap.store.names import NameReader
from blockmap.store.opening import open_store
from tests.conftest import CHECKOUT
from tests.serve.conftest import Server
from tests.store import servers

HOSTS = ("left", "right")


@dataclass(frozen=True, slots=True)
class Network:
    """Namespaces of two hosts, and the address at which both reach the machine that they are on."""

    address: str
    names: dict[str, str]


@pytest.fixture
def network(need: Callable[..., None], need_root: None) -> Iterator[Network]:
    need("ip")
    names = {host: f"blockmap-{os.getpid()}-{host}" for host in HOSTS}

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    made = []
    try:
        for number, (host, name) in enumerate(names.items()):
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces cannot be made: {error.stderr.decode().strip()}")
            made.append(name)
            here, there = f"bm{os.getpid()}{host[0]}", f"bm{os.getpid()}{host[0]}1"
            ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
            ip("addr", "add", f"198.18.{number}.1/30", "dev", here)
            ip("link", "set", here, "up")
            ip("-n", name, "addr", "add", f"198.18.{number}.2/30", "dev", there)
            for device in ("lo", there):
                ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "route", "add", "default", "via", f"198.18.{number}.1")
        yield Network("198.18.0.1", names)
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)


def race(url: str, images: Path, where: Path, moves: int, prefixes: dict[str, list[str]]) -> list[int]:
    """Lets each host move small:1 `moves` times; checks what became of it, and returns how often each was told it lost."""
    writer = Server(where / "writer", url)
    for tag in ("1", "2"):
        writer.run("import", f"oci:{images}/{tag}:{tag}", "small:1", "--platform", "linux/amd64")
    processes = {
        host: subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.serve.mover", url, "small:1", host, str(moves), str(where / host)],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for host, prefix in prefixes.items()
    }
    said = {host: json.loads(process.communicate()[0]) for host, process in processes.items()}
    assert all(process.returncode == 0 for process in processes.values())
    reader = NameReader(open_store(url)[0])
    chain = list(reader.history("small", "1"))
    assert [entry.n for entry in chain] == list(range(2 + 2 * moves, 0, -1))
    stands = {entry.n: entry for entry in chain}
    for host, other in (HOSTS, HOSTS[::-1]):
        assert len(said[host]["made"]) == moves
        for move, (n, nonce) in enumerate(said[host]["made"]):
            assert (stands[n].nonce, stands[n].message) == (nonce, f"{host} {move}"), (
                "a move that was acknowledged stands"
            )
        assert all(f"({other} " in text for text in said[host]["told"]), "who lost is told who won"
    return [len(said[host]["told"]) for host in HOSTS]


def test_two_processes_move_one_name(remote: str, images: Path, tmp_path: Path) -> None:
    race(remote, images, tmp_path, 25, {host: [] for host in HOSTS})


@pytest.mark.long
@pytest.mark.root
def test_two_hosts_move_one_name_a_thousand_times(
    network: Network, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "seaweedfs").mkdir()
    with servers.seaweedfs(tmp_path / "seaweedfs", network.address) as server:
        servers.use(server, monkeypatch)
        began = time.monotonic()
        prefixes = {host: ["ip", "netns", "exec", name] for host, name in network.names.items()}
        told = race(server.url(), images, tmp_path, 500, prefixes)
        print(f"1,000 moves in {time.monotonic() - began:.1f} s; told that the other was faster: {told}")
        assert min(told) > 0
