"""What people are shown of a status: figures, rates, and units."""

import io
from typing import Any

import pytest
from rich.console import Console

from blockmap.cli.figures import exports, faults, remote
from blockmap.cli.top import Snapshot, render
from blockmap.server.store_log import CallLog
from blockmap.store.call import Call
from blockmap.terminal.units import duration, share
from blockmap.volume.reads import Slow, Source, Tally

APP, OLD = "app@sha256:" + "ab" * 32, "old@sha256:" + "cd" * 32


def status(hits: int, fetched: int, calls: int = 0, pid: int = 1) -> dict[str, Any]:
    tally, log = Tally(), CallLog()
    tally.slow(Slow(Source.ZEROS, 1e-5), 4096)
    for _ in range(fetched):
        tally.slow(Slow(Source.FETCHED, 0.02), 4096)
    tally.hits, tally.hit_bytes = hits, hits * 4096
    for _ in range(calls):
        log.note(Call("get_range", "key", 0.0, 0.04, 1000, None))
    return {
        "pid": pid,
        "supervisor": {"pid": 7, "idle_seconds": None, "log": None},
        "learn": {"running": 0, "runs": 0, "failures": 0},
        "seconds": 10.0,
        "store": "/s",
        "exports": [{"export": APP, "connections": 2, "size": 1 << 30, "waiting": 3}],
        "reads": [{"export": OLD, **Tally().status()}, {"export": APP, **tally.status()}],
        "remote": log.status(),
        "fetch": {
            "bundles": 3,
            "bundles_running": 1,
            "bundle_bytes": 2_100_000,
            "bundle_missed_reads": 4,
            "bundle_damaged_chunks": 0,
            "bundles_failed": 2,
            "hydrated_bytes": 8_000_000,
            "hydrated_reads": 70,
            "damaged": 0,
            "failed_reads": 0,
            "store_away": 0,
        },
        "hydrations": [
            {"export": APP, "bytes": 5_000_000, "state": "running"},
            {"export": OLD, "bytes": 7_000_000, "state": "complete"},
        ],
        "cache": {
            "bytes": 10,
            "cap_bytes": 100,
            "slots": 5,
            "evicted": 0,
            "damaged": 0,
            "lost": 0,
            "missing": 0,
            "replaced": 0,
        },
    }


def shown(now: Snapshot, before: Snapshot | None, columns: int = 150) -> str:
    console = Console(file=io.StringIO(), width=columns)
    console.print(render(now, before))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_exports_with_their_reads() -> None:
    app, old = exports(status(hits=98, fetched=2))
    assert (app.name, app.size, app.connections, app.waiting) == (APP, 1 << 30, 2, 3)
    assert (app.reads.count, app.reads.bytes, app.reads.hit_ratio) == (101, 101 * 4096, 0.98)
    assert (old.size, old.reads.count, old.reads.hit_ratio, old.reads.latency_s(0.5)) == (None, 0, None, None)


def test_what_is_brought_ahead_is_told_live() -> None:
    text = shown(Snapshot(5.0, status(hits=1, fetched=0)), None)
    assert "3 bundles, 1 under way, 4 reads had to fetch besides; 2 failed" in text
    assert "8.0 MB for starts that missed, 70 chunks of it were read" in text
    assert "all of app@abababababab: 5.0 MB, running" in text
    assert "all of old@cdcdcdcdcdcd: 7.0 MB, complete" in text


def test_faults_are_told_where_there_are_any() -> None:
    whole = status(1, 0)
    whole["cache"] |= {"lost": 3, "replaced": 1}
    whole["fetch"] |= {"store_away": 1}
    found = faults(whole)
    assert found[0] == "the store does not answer"
    assert found[1] == "3 chunks and nodes of the cache were lost"
    assert "began anew" in found[2]
    assert faults(status(1, 0)) == []


@pytest.mark.parametrize("columns", [60, 200])
def test_no_value_is_lost_in_a_narrow_window(columns: int) -> None:
    text = shown(Snapshot(5.0, status(hits=1_000_000, fetched=2)), None, columns)
    assert "\u2026" not in text
    (head, row) = (line for line in text.splitlines() if line.startswith(("EXPORT", "app@")))
    assert head.split()[:4] == ["EXPORT", "CONN", "READS/S", "BYTES/S"]
    assert row.split()[:5] == ["app@abababababab", "2", "100,000", "410", "MB"]
    assert (head.split()[-1] == "ERR") == (columns == 200)


def test_an_export_that_nobody_has_read_yet_and_a_store_that_nobody_asked() -> None:
    fresh = {**status(0, 0), "reads": []}
    (app,) = exports(fresh)
    assert app.reads.count == 0
    assert remote(fresh).count == 0
    assert remote(fresh).latency_s(0.99) is None
    assert remote(status(0, 0, calls=3)).since(remote(fresh)).count == 3


def test_rates_are_differences_over_time() -> None:
    now = Snapshot(103.0, status(hits=6098, fetched=2, calls=5))
    text = shown(now, Snapshot(100.0, status(hits=98, fetched=2, calls=2)))
    (row,) = (line for line in text.splitlines() if line.startswith("app@abababababab"))
    assert row.split() == ["app@abababababab", "2", "2,000", "8.2", "MB", "100.0", "%", "-", "-", "3", "0"]
    assert "1 requests/s, 1.0 kB/s" in text
    assert not any(line.startswith("old@") for line in text.splitlines()), "it is closed"


def test_the_first_sample_shows_the_whole_time() -> None:
    text = shown(Snapshot(5.0, status(hits=997, fetched=2, calls=20)), None)
    assert "2 requests/s, 2.0 kB/s" in text
    assert "38 ms (p50), 50 ms (p99)" in text
    assert "faults" not in text
    (row,) = (line for line in text.splitlines() if line.startswith("app@abababababab"))
    assert row.split()[2] == "100"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0.0 us"),
        (4.23e-6, "4.2 us"),
        (0.00123, "1.2 ms"),
        (0.0999, "100 ms"),
        (2.5, "2.5 s"),
        (5000, "5000 s"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_shares() -> None:
    assert [share(ratio) for ratio in (None, 0.0, 0.9876, 1.0)] == ["-", "0.0 %", "98.8 %", "100.0 %"]
