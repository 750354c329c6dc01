"""Reads of a store behind a web server that misbehaves: right bytes or an error, in time."""

import time
from pathlib import Path

import pytest

from blockmap.errors import BlockmapError
from blockmap.format import BLOCK, keys
from blockmap.format.chunker import SPAN
from blockmap.store.http import open_http
from blockmap.store.memory import MemoryStore
from tests.image.builder import bulk
from tests.store.misbehaving import Misbehaving, misbehaving
from tests.volume.building import publish
from tests.volume.opened import OpenVolume, opened, read_blocks
from tests.waiting import until

BLOCKS = 600
FAR = 9 * SPAN
"""A block below another leaf."""
LATE_S = 4.0
"""What a busy machine adds to the two seconds."""
NEVER_DONE = ["stall", "stalled half", "crawl"]
WRONG = [
    "416",
    "whole",
    "no range",
    "other range",
    "half",
    "short",
    "long",
    "compressed",
    "chunked",
    "other bytes",
    "broken off",
]


def fails_in_time(view: OpenVolume, block: int) -> str:
    began = time.monotonic()
    with pytest.raises(BlockmapError) as caught:
        read_blocks(view, block)
    assert time.monotonic() - began < 2 + LATE_S
    return str(caught.value)


def reads_again(view: OpenVolume, server: Misbehaving) -> None:
    """The server behaves: what is read is right, as soon as the probe has seen it."""
    server.fault = ""

    def read(block: int) -> bool:
        seed, at = (2, block - FAR) if block >= FAR else (1, block)
        try:
            data = read_blocks(view, block)
        except BlockmapError:
            return False
        assert data == bulk(seed, BLOCKS * BLOCK)[at * BLOCK :][:BLOCK]
        return True

    for block in (1, 500, FAR + 2, FAR + 500):
        until(lambda block=block: read(block))


@pytest.mark.parametrize("prefix", ["packs/", ""])
@pytest.mark.parametrize("fault", NEVER_DONE)
def test_a_read_does_not_wait_for_a_request_that_is_not_done(fault: str, prefix: str, tmp_path: Path) -> None:
    objects = MemoryStore()
    objects.create(keys.FORMAT, [b"{}"])
    data = bulk(1, BLOCKS * BLOCK)
    root = publish(objects, [(0, data), (FAR, bulk(2, BLOCKS * BLOCK))], 10 * SPAN)
    with misbehaving(objects) as server, opened(open_http(server.url), root, tmp_path) as view:
        assert read_blocks(view, 0) == data[:BLOCK]
        server.prefix, server.fault = prefix, fault
        for block in (500, FAR, FAR + 500):  # of the same leaf; of another; and again
            fails_in_time(view, block)
        reads_again(view, server)
        server.ended.set()


@pytest.mark.parametrize("fault", WRONG)
def test_a_server_that_breaks_http_makes_errors_that_say_so(fault: str, tmp_path: Path) -> None:
    objects = MemoryStore()
    objects.create(keys.FORMAT, [b"{}"])
    data = bulk(1, BLOCKS * BLOCK)
    root = publish(objects, [(0, data), (FAR, bulk(2, BLOCKS * BLOCK))], 10 * SPAN)
    with misbehaving(objects) as server, opened(open_http(server.url), root, tmp_path) as view:
        assert read_blocks(view, 0) == data[:BLOCK]
        server.fault = fault
        said = fails_in_time(view, 500)
        if fault != "broken off":
            assert "away" not in said
        fails_in_time(view, FAR)
        assert len(server.requests) < 60
        reads_again(view, server)
