"""Calls that are made at once."""

import threading

import pytest

from blockmap.store.concurrent import each, spawn


def test_calls_overlap_and_results_are_in_order() -> None:
    meeting = threading.Barrier(16)

    def call(item: int) -> int:
        meeting.wait(20)
        return item * item

    assert each(call, range(32)) == [item * item for item in range(32)]
    assert each(call, []) == []


@pytest.mark.parametrize("bad", [0, 7, 99])
def test_an_error_is_raised(bad: int) -> None:
    def call(item: int) -> None:
        if item == bad:
            raise ValueError(item)

    with pytest.raises(ValueError, match=str(bad)):
        each(call, range(100))
    with pytest.raises(ValueError, match=str(bad)):
        spawn(lambda: call(bad)).result(20)
