"""How long readers wait for a store that is away."""

import itertools
import threading
import time

import pytest

from blockmap.errors import StoreRefused, StoreUnavailable
from blockmap.origin.outage import OutageGate
from blockmap.origin.outage_policy import OutagePolicy

AWAY = StoreUnavailable("no answer")


def never() -> None:
    raise AWAY


def give_up(gate: OutageGate, policy: OutagePolicy) -> None:
    attempt = gate.attempt(policy)
    with pytest.raises(StoreUnavailable):
        gate.failed(attempt, AWAY)


def test_a_reader_after_one_that_waited_in_vain_does_not_wait() -> None:
    gate = OutageGate(never)
    give_up(gate, OutagePolicy(0.2))
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(StoreUnavailable, match="the store is away: no answer"):
            gate.check(gate.attempt(OutagePolicy(0.2)))
    assert time.monotonic() - began < 10, "100 waits would take 20 s"
    gate.stop()


def test_the_next_outage_is_waited_for_again() -> None:
    gate = OutageGate(never)
    give_up(gate, OutagePolicy(0.1))
    gate.answered()
    gate.check(gate.attempt(OutagePolicy(0.1)))
    now = time.monotonic()
    give_up(gate, OutagePolicy(0.1))
    assert time.monotonic() - now >= 0.1
    gate.stop()


def test_a_probe_that_hangs_does_not_hide_that_the_store_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockmap.origin.outage._PROBE_S", 0.05)
    hanging, calls = threading.Event(), itertools.count()

    def probe() -> None:
        if next(calls) < 2:
            hanging.wait(20)
            raise AWAY

    gate = OutageGate(probe)
    began = time.monotonic()
    gate.failed(gate.attempt(OutagePolicy(10)), AWAY)
    assert not gate.away
    assert time.monotonic() - began < 8
    hanging.set()


def test_a_store_that_answers_wrongly_is_not_away() -> None:
    def probe() -> None:
        raise StoreRefused("200 instead of 206")

    gate = OutageGate(probe)
    gate.failed(gate.attempt(OutagePolicy(10)), AWAY)
    assert not gate.away


def test_a_reader_with_a_longer_policy_waits_on() -> None:
    gate = OutageGate(never)
    give_up(gate, OutagePolicy(0))
    now = time.monotonic()
    with pytest.raises(StoreUnavailable):
        gate.check(gate.attempt(OutagePolicy(0.1)))
    assert time.monotonic() - now >= 0.1
    gate.stop()
