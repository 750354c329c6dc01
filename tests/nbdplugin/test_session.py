"""What connections count, and what stays of it when they are gone."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockmap.errors import HostError, NotFound
from blockmap.origin.outage_policy import DEFAULT
from blockmap.server.registry import Opened
from blockmap.trace.manager import TraceManager
from blockmap.volume.reads import MOST, Slow, Source, Tally
from blockmap.volume.start import Start
from nbdplugin import session
from nbdplugin.session import OTHER, Sessions
from tests.trace.starting import StandingVolume


class Served:
    """A server whose exports are opened as often as a test likes."""

    def __init__(self, traces: TraceManager) -> None:
        self.traces = traces
        self.closed: list[str] = []

    def open(self, export: str) -> Opened:
        volume = StandingVolume(export)
        start = Start(export, volume.root)
        return Opened(volume, start, DEFAULT, False, lambda: self.closed.append(export))

    def status(self) -> dict[str, object]:
        return {"opens": 7}


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(TraceManager(tmp_path / "traces", lambda head, path: None))


@pytest.fixture
def sessions(served: Served) -> Sessions:
    return Sessions(served)  # type: ignore[arg-type]


def reads(sessions: Sessions, export: str) -> dict[str, int]:
    """Reads by source, of one export."""
    listed = sessions.status()["reads"]
    assert isinstance(listed, list)
    return next(
        ({source: n["reads"] for source, n in each["sources"].items()} for each in listed if each["export"] == export),
        {},
    )


def in_threads(count: int, act: Callable[[], object]) -> None:
    """At once, so that each is a thread of its own."""
    start = threading.Barrier(count)

    def run(_: int) -> None:
        start.wait()
        act()

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count)))


def test_every_thread_has_a_tally_and_all_count(sessions: Sessions) -> None:
    one, two = sessions.open("a", True), sessions.open("a", True)
    assert one.tally() is one.tally()

    def count() -> None:
        for each in (one, two):
            tally = each.tally()
            tally.hits += 5
            tally.hit_bytes += 5 * 4096
            tally.slow(Slow(Source.FETCHED, 0.02), 4096)
            tally.errors += 1

    in_threads(3, count)
    status = sessions.status()
    (found,) = status["reads"]  # type: ignore[misc]
    assert found["export"] == "a"
    assert found["errors"] == 6
    assert {source: (n["reads"], n["bytes"]) for source, n in found["sources"].items()} == {
        "zeros": (0, 0),
        "local": (0, 0),
        "cache": (30, 30 * 4096),
        "bundle": (0, 0),
        "fetched": (6, 6 * 4096),
    }
    assert sum(found["sources"]["fetched"]["latency"]["counts"]) == 6
    assert (status["opens"], status["pid"]) == (7, os.getpid())


def test_counts_outlive_connections(sessions: Sessions, served: Served) -> None:
    one, two = sessions.open("a", True), sessions.open("a", True)
    one.tally().hits += 3
    two.tally().hits += 4
    assert reads(sessions, "a")["cache"] == 7
    sessions.close(one)
    assert served.closed == ["a"]
    assert reads(sessions, "a")["cache"] == 7
    sessions.close(two)
    sessions.close(sessions.open("a", True))
    assert reads(sessions, "a")["cache"] == 7


def test_a_measured_hit_stands_for_those_before_it(sessions: Sessions) -> None:
    one = sessions.open("a", True)
    tally, buf = one.tally(), memoryview(bytearray(1))
    timed = 0
    for hits in range(10_000):
        if tally.hits == tally.measure_at:
            assert one.read_timed(buf, 0, tally) is None
            timed += 1
        tally.hits += 1
        told = sum(tally.served[Source.CACHE].latency.counts)
        assert told <= tally.hits < told + MOST
        assert hits > 3 or timed == tally.hits
    assert 10_000 / MOST < timed < 10_000 / MOST + 40
    tally.hits = tally.measure_at
    slow, told = Slow(Source.ZEROS, 0.1), sum(tally.served[Source.CACHE].latency.counts)
    one.read = lambda buf, offset: slow
    assert one.read_timed(buf, 0, tally) is slow
    assert sum(tally.served[Source.CACHE].latency.counts) == told, "whoever answers a slow read notes it"


def test_exports_closed_long_ago_are_told_together(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_EXPORTS_KEPT", 2)
    kept_open = sessions.open("0", True)
    for name in ("0", "1", "2", "1", "3", "4"):
        each = sessions.open(name, True)
        each.tally().hits += 1
        sessions.close(each)
    assert reads(sessions, OTHER)["cache"] == 3  # of 2, then of 1
    assert [reads(sessions, name).get("cache") for name in "01234"] == [1, None, None, 1, 1]
    sessions.close(kept_open)
    listed = sessions.status()["reads"]
    assert isinstance(listed, list)
    assert sum(each["sources"]["cache"]["reads"] for each in listed) == 6


def test_a_tally_adds_up() -> None:
    one, two = Tally(), Tally()
    for tally, n in ((one, 1), (two, 2)):
        tally.hits, tally.hit_bytes, tally.errors = n, n * 10, n
        tally.slow(Slow(Source.CACHE, 0.1), n)
    one.merge(two)
    status = one.status()
    assert status["errors"] == 3
    cache = status["sources"]["cache"]  # type: ignore[index]
    assert (cache["reads"], cache["bytes"]) == (5, 33)


def test_there_are_no_more_connections_than_were_said(served: Served) -> None:
    sessions = Sessions(served, 2)  # type: ignore[arg-type]
    one = sessions.open("a@1", True)
    sessions.open("b@1", True)
    with pytest.raises(HostError, match="2 connections are open"):
        sessions.open("a@1", True)
    sessions.close(one)
    sessions.open("a@1", True)
    with pytest.raises(HostError):
        sessions.open("a@1", True)


def test_an_export_that_cannot_be_opened_takes_no_place(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(served, 1)  # type: ignore[arg-type]

    def fail(export: str) -> Opened:
        raise NotFound(export)

    with monkeypatch.context() as patched:
        patched.setattr(served, "open", fail)
        for _ in range(3):
            with pytest.raises(NotFound):
                sessions.open("a@1", True)
    sessions.open("a@1", True)
