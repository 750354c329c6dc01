"""What the log of remote calls says: counts, the latest one by one, round trips."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.server.store_log import CallLog, serial_steps
from blockmap.store.call import Call
from blockmap.volume.histogram import BOUNDS_S, Histogram, quantile


def call(start: float, end: float, op: str = "get", count: int = 0, error: str | None = None) -> Call:
    return Call(op, "key", start, end - start, count, error)


@pytest.mark.parametrize(
    ("intervals", "steps"),
    [
        ([], 0),
        ([(0, 1)], 1),
        ([(0, 1), (1, 2), (2, 3)], 3),
        ([(0, 1), (0, 1), (0, 1)], 1),
        ([(0, 10), (1, 2), (3, 4), (5, 6)], 3),  # a long one beside short ones that follow each other
        ([(0, 2), (1, 3), (2, 4), (3, 5)], 2),
        ([(5, 6), (0, 1)], 2),  # in any order
    ],
)
def test_serial_steps(intervals: list[tuple[int, int]], steps: int) -> None:
    assert serial_steps([call(start, end) for start, end in intervals]) == steps


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), max_size=9))
def test_serial_steps_are_the_longest_chain(intervals: list[tuple[int, int]]) -> None:
    calls = [call(start, start + length) for start, length in intervals]
    longest = 0
    for size in range(len(calls), 0, -1):
        for chosen in itertools.combinations(sorted(calls, key=lambda each: each.start_s), size):
            if all(a.start_s + a.seconds <= b.start_s for a, b in itertools.pairwise(chosen)):
                longest = size
                break
        if longest:
            break
    assert serial_steps(calls) == longest


def test_counts_by_op_and_outcome() -> None:
    log = CallLog()
    log.note(call(0, 0.002, count=100))
    log.note(call(0, 0.004, count=50))
    log.note(call(0, 1, error="NotFound"))
    log.note(call(0, 1, "get_range", error="StoreUnavailable"))
    log.note(call(0, 1, "get_range", error="Corrupt"))
    log.note(call(0, 1, "get_range", error="ZeroDivisionError"))
    status = log.status()
    assert (status["requests"], status["bytes"], status["errors"]) == (6, 150, 3)
    ops = status["ops"]
    assert isinstance(ops, dict)
    assert ops["get"]["outcomes"] == {"ok": 2, "absent": 1}
    assert ops["get_range"]["outcomes"] == {"unavailable": 1, "short": 1, "failed": 1}
    assert sum(ops["get"]["latency"]["counts"]) == 3
    assert ops["get"]["latency"]["seconds"] == pytest.approx(1.006)


def test_the_latest_calls_by_number() -> None:
    log = CallLog(kept=5)
    assert log.since(0, 10) == (0, [])
    calls = [call(n, n + 1) for n in range(8)]
    for each in calls:
        log.note(each)
    assert log.since(0, 10) == (3, calls[3:])
    assert log.since(5, 2) == (5, calls[5:7])
    assert log.since(8, 10) == (8, [])
    assert log.since(100, 10) == (8, [])


def test_histogram_and_quantiles() -> None:
    assert BOUNDS_S[:4] == (5e-6, 1e-5, 2.5e-5, 5e-5)
    assert BOUNDS_S[-1] == 50.0
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))
    histogram = Histogram()
    assert quantile(BOUNDS_S, histogram.counts, 0.5) is None
    histogram.add(5e-6)  # a bound is in its own bucket, as Prometheus has it
    assert histogram.counts[0] == 1
    histogram.add(0.02, 98)
    histogram.add(1000.0)
    assert sum(histogram.counts) == 100
    assert histogram.seconds == pytest.approx(1000 + 98 * 0.02 + 5e-6)
    middle = quantile(BOUNDS_S, histogram.counts, 0.5)
    assert middle is not None
    assert 0.01 < middle <= 0.025
    assert quantile(BOUNDS_S, histogram.counts, 1.0) == BOUNDS_S[-1]
    other = Histogram()
    other.merge(histogram)
    assert other.status() == histogram.status()
