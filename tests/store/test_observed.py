"""Every call is noted, answered or not, and what it gives is untouched."""

import itertools

import pytest

from blockmap.errors import Corrupt, NotFound, StoreUnavailable
from blockmap.store.base import Pruner
from blockmap.store.call import Call
from blockmap.store.memory import MemoryStore
from blockmap.store.observed import Observed
from tests.store.faulty import Faulty


def test_calls_and_their_answers(store: Pruner) -> None:
    store.create("a/b", [b"0123456789"])
    noted: list[Call] = []
    ticks = itertools.count()
    observed = Observed(store, noted.append, lambda: float(next(ticks)))
    assert observed.url == store.url
    assert observed.get("a/b") == b"0123456789"
    assert observed.get_range("a/b", 2, 5) == b"234"
    assert observed.list("a/") == ["a/b"]
    assert observed.exists("a/b")
    assert not observed.exists("a/c")
    assert observed.size("a/b") == 10
    assert noted == [
        Call("get", "a/b", 0.0, 1.0, 10, None),
        Call("get_range", "a/b", 2.0, 1.0, 3, None),
        Call("list", "a/", 4.0, 1.0, 0, None),
        Call("exists", "a/b", 6.0, 1.0, 0, None),
        Call("exists", "a/c", 8.0, 1.0, 0, None),
        Call("size", "a/b", 10.0, 1.0, 0, None),
    ]


def test_errors_are_noted_and_raised() -> None:
    faulty = Faulty(MemoryStore())
    faulty.create("a", [b"abc"])
    noted: list[Call] = []
    observed = Observed(faulty, noted.append)
    with pytest.raises(NotFound):
        observed.get("b")
    with pytest.raises(Corrupt):
        observed.get_range("a", 2, 5)
    faulty.down = True
    with pytest.raises(StoreUnavailable):
        observed.list("")
    assert [(call.op, call.bytes, call.error) for call in noted] == [
        ("get", 0, "NotFound"),
        ("get_range", 0, "Corrupt"),
        ("list", 0, "StoreUnavailable"),
    ]
    assert all(call.seconds >= 0 for call in noted)
