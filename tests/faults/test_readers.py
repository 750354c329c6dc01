"""64 readers over 20 ms and 1 Gbit/s, beside what obstore alone gets with 64 threads through the same relay.

Run with -s for the figures, on a machine with nothing else to do: what is measured is the processor as much as the link.
"""

import json
import random
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from obstore.store import HTTPStore

from blockmap.format import BLOCK
from blockmap.store.opening import create_store
from tests.faults.links import netshape
from tests.host.conftest import Host
from tests.store.servers import nginx
from tests.volume.building import name, publish

pytestmark = pytest.mark.long

SIZE = 512 << 20
READ = 64 << 10
READERS = 64
CONNECTIONS = 4
RUNS = 5
MIN_RATIO = 0.9


def fill(where: Path) -> list[tuple[str, int]]:
    """Makes a store with a volume that does not compress; its large objects with their sizes."""
    store, _ = create_store(str(where))
    chosen = random.Random(1)
    root = publish(store, [(at // BLOCK, chosen.randbytes(16 << 20)) for at in range(0, SIZE, 16 << 20)], SIZE // BLOCK)
    name(store, root, "bulk", "1")
    found = [(key, (where / key).stat().st_size) for key in store.list("packs/")]
    return [each for each in found if each[1] > 1 << 20]


def alone(url: str, objects: list[tuple[str, int]]) -> float:
    """MiB/s of obstore."""
    store = HTTPStore(url, client_options={"allow_http": True, "pool_max_idle_per_host": "64"})
    ranges = [(key, at) for key, size in objects for at in range(0, size - READ, READ)]
    random.Random(2).shuffle(ranges)

    def read(each: tuple[str, int]) -> int:
        return len(obstore.get_range(store, each[0], start=each[1], end=each[1] + READ))

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, ranges[:READERS]))  # opens the connections
        began = time.monotonic()
        count = sum(pool.map(read, ranges))
        return count / (time.monotonic() - began) / (1 << 20)


def served(where: Path, url: str) -> float:
    """MiB/s of cold reads of everything, in random order, through a server with an empty cache."""
    host = Host(where)
    (where / "run").mkdir(parents=True)
    host.environment["BLOCKMAP_STORE"] = url
    host.serve()
    try:
        command = [
            "fio", "--name=x", "--ioengine=nbd", f"--uri={host.uri('bulk:1')}", "--rw=randread", f"--bs={READ}",
            f"--numjobs={CONNECTIONS}", f"--iodepth={READERS // CONNECTIONS}", f"--size={SIZE // CONNECTIONS}",
            f"--offset_increment={SIZE // CONNECTIONS}", "--group_reporting", "--output-format=json",
        ]  # fmt: skip
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return float(json.loads(out[out.index("{") :])["jobs"][0]["read"]["bw_bytes"] / (1 << 20))
    finally:
        host.stop()


def test_readers_get_what_the_link_gives(tmp_path: Path, need: Callable[..., None]) -> None:
    need("nginx", "nbdkit", "fio")
    objects = fill(tmp_path / "store")
    (tmp_path / "nginx").mkdir()
    peers, own = [], []
    with (
        nginx(tmp_path / "nginx", tmp_path / "store") as upstream,
        netshape(int(upstream.rpartition(":")[2])) as (port, _),
    ):
        url = f"http://127.0.0.1:{port}"
        for number in range(RUNS):
            peers.append(alone(url, objects))
            own.append(served(tmp_path / str(number), url))
    print(f"\nMiB/s: obstore alone {[round(each, 1) for each in peers]}, served {[round(each, 1) for each in own]}")
    assert max(own) >= MIN_RATIO * max(peers)
