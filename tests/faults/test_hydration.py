"""A server brings ahead what a reader goes on to miss, over 100 ms and 1 Gbit/s."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.control.messages import Hydrate
from blockmap.format import BLOCK
from blockmap.store.opening import create_store
from tests.faults.conftest import serving
from tests.host.conftest import Host
from tests.image.builder import bulk
from tests.serve.nbd import Nbd
from tests.volume.building import name, publish
from tests.waiting import until

BLOCKS = 10_000
DATA = bulk(1, BLOCKS * BLOCK)
LINK = ("--rtt-ms", "100")


@pytest.fixture
def store(tmp_path: Path, need: Callable[..., None]) -> Path:
    need("nginx", "nbdkit")
    store, _ = create_store(str(tmp_path / "store"))
    name(store, publish(store, [(0, DATA)], BLOCKS), "app", "1")
    return tmp_path / "store"


def scattered(host: Host) -> Iterator[None]:
    """Reads blocks here and there, one after the other, and checks them."""
    with Nbd(host.socket, "app:1") as nbd:
        for block in random.Random(1).sample(range(BLOCKS), 40):
            assert nbd.read(block * BLOCK, BLOCK) == DATA[block * BLOCK : (block + 1) * BLOCK]
            yield


def hydrated_bytes(host: Host) -> int:
    return int(host.client.status()["fetch"]["hydrated_bytes"])


def test_a_server_that_is_killed_meanwhile_serves_the_right_bytes_again(store: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "host", store, LINK, "--no-learn") as (host, _):
        for _ in scattered(host):
            if hydrated_bytes(host):
                break
        assert hydrated_bytes(host) > 0
        killed = host.client.status()["pid"]
        host.kill_nbdkit()
        until(lambda: host.client.answers() and host.client.status()["pid"] != killed, host.said)
        with Nbd(host.socket, "app:1") as nbd:
            for at in range(0, len(DATA), 1 << 20):
                assert nbd.read(at, min(1 << 20, len(DATA) - at)) == DATA[at : at + (1 << 20)]


def test_who_pays_for_bytes_can_say_so(store: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "never", store, LINK, "--no-learn", "--no-hydrate") as (host, _):
        assert sum(1 for _ in scattered(host)) == 40
        assert hydrated_bytes(host) == 0
    with serving(tmp_path / "once", store, LINK, "--no-learn") as (host, _):
        host.client.ask(Hydrate("app:1", wanted=False))
        assert sum(1 for _ in scattered(host)) == 40
        assert hydrated_bytes(host) == 0
