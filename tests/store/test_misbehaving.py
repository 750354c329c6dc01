"""Servers that break HTTP, which are called that."""

import pytest

from blockmap.errors import Corrupt, StoreRefused, StoreUnavailable
from blockmap.store.http import open_http
from blockmap.store.memory import MemoryStore
from tests.store.misbehaving import misbehaving

DATA = bytes(range(256)) * 16
FAULTS = {
    "416": "refuses a range that the object has",
    "whole": "200 instead of 206",
    "no range": "Content-Range is missing",
    "strange range": "Content-Range is not understood",
    "other range": r"another: bytes 101 to 301 where 100 to 300 were asked for",
    "half": r"another: bytes 100 to 200 where 100 to 300 were asked for",
    "compressed": "compresses its answers",
    "chunked": "Content-Length is missing",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_breaks_http_is_told_of_it(fault: str) -> None:
    objects = MemoryStore()
    objects.create("a", [DATA])
    with misbehaving(objects) as server:
        server.fault = fault
        with pytest.raises(StoreRefused, match=FAULTS[fault]):
            open_http(server.url).get_range("a", 100, 300)
        assert len(server.requests) <= 3


@pytest.mark.parametrize("fault", ["short", "long"])
def test_a_body_of_another_length_than_asked_for_is_no_answer(fault: str) -> None:
    objects = MemoryStore()
    objects.create("a", [DATA])
    with misbehaving(objects) as server:
        server.fault = fault
        with pytest.raises((Corrupt, StoreUnavailable)):
            open_http(server.url).get_range("a", 100, 300)
        assert len(server.requests) <= 10


def test_compressed_objects_are_told_of() -> None:
    objects = MemoryStore()
    objects.create("a", [DATA])
    with misbehaving(objects) as server:
        server.fault = "compressed"
        with pytest.raises(StoreRefused, match="Content-Encoding: gzip"):
            open_http(server.url).get("a")


def test_what_breaks_off_is_asked_for_again_but_not_for_ever() -> None:
    objects = MemoryStore()
    objects.create("a", [DATA])
    with misbehaving(objects) as server:
        server.fault = "broken off"
        web = open_http(server.url)
        for read in (lambda: web.get("a"), lambda: web.get_range("a", 100, 300)):
            with pytest.raises(StoreUnavailable, match="the connection broke"):
                read()
        assert len(server.requests) <= 40
