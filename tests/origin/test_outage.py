"""How long readers wait for a store that is away."""

import time

import pytest

from blockmap.errors import StoreUnavailable
from blockmap.origin.outage import OutageGate
from blockmap.origin.outage_policy import OutagePolicy

AWAY = StoreUnavailable("no answer")


def never() -> None:
    raise AWAY


def give_up(line: OutageGate, patience: OutagePolicy) -> None:
    trial = line.trial(patience)
    with pytest.raises(StoreUnavailable):
        line.failed(trial, AWAY)


def test_who_comes_after_patience_has_ended_does_not_wait() -> None:
    line = OutageGate(never)
    give_up(line, OutagePolicy(0.2))
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(StoreUnavailable, match="the store is away: no answer"):
            line.check(line.trial(OutagePolicy(0.2)))
    assert time.monotonic() - began < 10, "100 waits would take 20 s"
    line.stop()


def test_the_next_outage_is_waited_for_again() -> None:
    line = OutageGate(never)
    give_up(line, OutagePolicy(0.1))
    line.answered()
    line.check(line.trial(OutagePolicy(0.1)))
    now = time.monotonic()
    give_up(line, OutagePolicy(0.1))
    assert time.monotonic() - now >= 0.1
    line.stop()


def test_more_patience_waits_on() -> None:
    line = OutageGate(never)
    give_up(line, OutagePolicy(0))
    now = time.monotonic()
    with pytest.raises(StoreUnavailable):
        line.check(line.trial(OutagePolicy(0.1)))
    assert time.monotonic() - now >= 0.1
    line.stop()
