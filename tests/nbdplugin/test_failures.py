"""The log of failing requests."""

import logging

import pytest

from nbdplugin.failures import Failures


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_many_failures_of_one_kind_are_counted_not_told(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    failures = Failures(logging.getLogger("test"), clock)
    for number in range(100):
        failures.note("StoreUnavailable", f"read {number}")
    failures.note("Corrupt", "another kind is told all the same")
    assert caplog.messages == [*(f"read {number}" for number in range(5)), "another kind is told all the same"]
    caplog.clear()
    clock.now += 9.9
    failures.note("StoreUnavailable", "still the same window")
    assert caplog.messages == []
    clock.now += 0.1
    failures.note("StoreUnavailable", "again")
    failures.note("Corrupt", "again too")
    assert caplog.messages == [
        "96 more failures of kind StoreUnavailable were left out of this log",
        "again",
        "again too",
    ]
