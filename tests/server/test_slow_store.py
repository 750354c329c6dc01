"""What opens and reads wait for a store that crawls or stalls: as long as their outage policy says, and no more than 2 s."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.errors import StoreUnavailable
from blockmap.format import BLOCK, keys
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.server.registry import Opened
from blockmap.server.server import Server
from blockmap.store.concurrent import spawn
from blockmap.store.memory import MemoryStore
from blockmap.store.opening import create_store
from tests.image.builder import bulk
from tests.store.misbehaving import misbehaving
from tests.volume.building import name, publish_trees
from tests.waiting import until

WAIT_S = 0.5
DATA = bulk(1, 400 * BLOCK)


@pytest.fixture
def objects(tmp_path: Path) -> MemoryStore:
    made = MemoryStore()
    form = create_store(str(tmp_path / "form"))[0].get(keys.FORMAT)
    made.create(keys.FORMAT, [form])
    trees = publish_trees(made, [(0, DATA)], 1000)
    name(made, trees.root, "a", "1", run=trees.run)
    return made


def refused(act: Callable[[], object]) -> None:
    """Asserts that something ends with an error within the policy's time and 2 s."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        act()
    assert time.monotonic() - began < WAIT_S + 2


def read(opened: Opened, block: int) -> bytes:
    buf = bytearray(BLOCK)
    opened.volume.reader(opened.start)(memoryview(buf), block * BLOCK)
    return bytes(buf)


@pytest.mark.parametrize("fault", ["stall", "crawl"])
def test_what_is_not_answered_in_time_is_refused_in_time(objects: MemoryStore, tmp_path: Path, fault: str) -> None:
    with misbehaving(objects) as web:
        server = Server(web.url, tmp_path / "cache", 1 << 28, {"": OutagePolicy(WAIT_S)})
        try:
            web.fault = fault
            refused(lambda: server.open("a:1"))
            refused(lambda: server.resolve("a:1"))
            web.fault = ""
            opened = server.open("a:1")
            assert read(opened, 0) == DATA[:BLOCK]
            web.fault, web.prefix = fault, "packs/"
            refused(lambda: read(opened, 390))
            opened.close()
        finally:
            web.fault = ""
            web.ended.set()
            server.close()


def test_an_open_waits_for_nodes_no_longer_than_a_read_would(objects: MemoryStore, tmp_path: Path) -> None:
    with misbehaving(objects) as web:
        server = Server(web.url, tmp_path / "cache", 1 << 28, {"": OutagePolicy(WAIT_S)})
        try:
            web.fault, web.prefix = "crawl", "packs/"
            began = time.monotonic()
            server.open("a:1").close()
            assert WAIT_S < time.monotonic() - began < WAIT_S + 2
        finally:
            web.fault = ""
            web.ended.set()
            server.close()


def test_a_server_that_ends_keeps_no_open_waiting(objects: MemoryStore, tmp_path: Path) -> None:
    with misbehaving(objects) as web:
        server = Server(web.url, tmp_path / "cache", 1 << 28, {"": OutagePolicy(60)})
        web.fault = "stall"
        opening = spawn(lambda: server.open("a:1"))
        until(lambda: any("hints" in request for request in web.requests))
        server.stop()
        with pytest.raises(StoreUnavailable, match="ending"):
            opening.result(5)
        web.ended.set()
        server.close()
