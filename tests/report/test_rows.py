"""The rows of a waterfall, their bars in time, and the sentences above them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.filemap import File
from blockmap.format.trace import FOR_PREFETCH, FOR_STORE, Trace, TraceHead
from blockmap.report import rows
from blockmap.report.data import Image, ReportedStart, ReportRun, analyse
from blockmap.report.files import METADATA, index
from blockmap.report.rows import Bar, BarKind, Row, call_rows, package_rows
from blockmap.report.verdict import difference, verdict
from blockmap.report.waterfall import Axis
from blockmap.store.call import Call
from tests.report.hostile import reads_of, waits_of

FILES = [File(b"a", 4 * BLOCK, [(10, 4)]), File(b"b", 4 * BLOCK, [(20, 4)]), File(b"c", 4 * BLOCK, [(30, 4)])]
PACKAGES = [METADATA, "one", "two", "one"]


def start_of(
    *reads: tuple[int, int, int],
    waits: list[tuple[int, int, int, int, int]] | None = None,
    ready_ms: int = 1000,
    calls: tuple[Call, ...] = (),
) -> ReportedStart:
    head = TraceHead("r", "default", Digest(bytes(32)), Digest(bytes(32)), 1 << 30, 0, ready_ms=ready_ms)
    trace = Trace(head, reads_of(*reads), None if waits is None else waits_of(*waits))
    return ReportedStart(analyse(trace, Image(index(FILES), PACKAGES, None, True)), calls, "", None, "")


def names(found: list[Row]) -> list[tuple[str, list[str]]]:
    return [(row.name, [each.name for each in row.files]) for row in found]


def kinds(bars: Sequence[Bar]) -> list[tuple[BarKind, float, float]]:
    return [(bar.kind, bar.start_s, bar.end_s) for bar in bars]


def test_rows_come_in_the_order_of_the_first_read_over_all_starts() -> None:
    first = start_of((10, 30, 1), (20, 20, 1), (30, 10, 1))
    assert names(package_rows([first], 1.0)) == [("one", ["/c", "/a"]), ("two", ["/b"])]
    second = start_of((5, 20, 1), (6, 0, 1))
    both = package_rows([first, second], 1.0)
    assert names(both) == [("two", ["/b"]), (METADATA, []), ("one", ["/c", "/a"])]
    assert [[lane is None for lane in row.lanes] for row in both] == [[False, False], [True, False], [False, True]]


def test_what_is_beyond_the_limit_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_GROUPS", 1)
    found = package_rows([start_of((10, 30, 1), (20, 20, 4), (30, 0, 2))], 1.0)
    assert names(found) == [("two", ["/b"]), ("2 other packages", ["/c", METADATA])]
    assert found[1].lanes[0] is not None
    assert found[1].lanes[0].bytes == 3 * BLOCK


def test_bars_are_waits_by_their_reason_and_reads_without_one() -> None:
    waits = [(100, 50, 10, 1, FOR_STORE), (120, 60, 11, 1, FOR_STORE), (200, 10, 12, 1, FOR_PREFETCH)]
    (row,) = package_rows([start_of((100, 10, 1), (120, 11, 1), (200, 12, 1), (300, 13, 1), waits=waits)], 1.0)
    lane = row.lanes[0]
    assert lane is not None
    assert kinds(lane.bars) == [
        (BarKind.CACHE, 0.3, 0.3), (BarKind.PREFETCH, 0.2, pytest.approx(0.21)), (BarKind.STORE, 0.1, pytest.approx(0.18)),
    ]  # fmt: skip
    assert lane.waited_s == pytest.approx(0.09)
    assert lane.bars[2].says == "2 reads of 8.2 kB waited for the store, 0.100 to 0.180 s"
    assert lane.bars[0].says == "4.1 kB there already, at 0.300 s"


def test_reads_close_to_each_other_are_one_bar_and_others_not() -> None:
    (row,) = package_rows([start_of((100, 10, 1), (103, 11, 1), (108, 12, 1))], 1.0)
    lane = row.lanes[0]
    assert lane is not None
    assert kinds(lane.bars) == [(BarKind.CACHE, 0.1, 0.103), (BarKind.CACHE, 0.108, 0.108)]
    assert (lane.waited_s, lane.bars[0].says) == (None, "8.2 kB read, 0.100 to 0.103 s")


def test_calls_have_a_row_by_what_they_ask_for() -> None:
    calls = (
        Call("get_range", "bundles/x/1", 0.1, 0.1, 1000, None),
        Call("get_range", "bundles/x/1", 0.15, 0.1, 1000, None),
        Call("get_range", "packs/ab", 0.5, 0.1, 500, None),
        Call("get", "names/r/1", 0.0, 0.05, 10, None),
    )
    found = call_rows([start_of((1, 10, 1)), start_of((1, 10, 1), calls=calls)], 1.0)
    assert [row.name for row in found] == [
        "Store: names and records",
        "Store: packs, of chunks and nodes",
        "Store: the bundle",
    ]
    assert all(row.lanes[0] is None for row in found)
    bundle = found[2].lanes[1]
    assert bundle is not None
    assert kinds(bundle.bars) == [(BarKind.CALL, 0.1, pytest.approx(0.25))]
    assert bundle.bars[0].says == "2 calls, 2.0 kB came, 0.100 to 0.250 s"


def told(run: ReportRun) -> str:
    return verdict(run).rstrip(".").replace(" that it read", "")


def test_the_verdict_says_when_it_was_ready_what_it_waited_and_what_came_ahead() -> None:
    waits = [(0, 100, 10, 1, FOR_STORE), (300, 50, 11, 3, FOR_PREFETCH)]
    run = start_of((0, 10, 1), (300, 11, 3), waits=waits).run
    assert told(run) == "Ready after 1.00 s; 0.15 s of it waiting for the store; 75 % of the 16.4 kB came ahead of need"
    run = start_of((0, 10, 1), (300, 11, 3), waits=[]).run
    assert told(run) == "Ready after 1.00 s; it never waited for the store; 100 % of the 16.4 kB came ahead of need"
    run = start_of((0, 10, 1), (300, 11, 3), ready_ms=0).run
    assert told(run) == "Read for 0.30 s; 16.4 kB were read; what it waited for was not recorded"
    assert told(start_of().run) == "Nothing was read"
    many = start_of(*((0, 100 + n, 1) for n in range(999)), (0, 10, 1), waits=[(0, 100, 10, 1, FOR_STORE)]).run
    assert "99 % of" in told(many), "not 100 %"


def test_two_starts_differ_in_a_sentence() -> None:
    slow = start_of((0, 10, 4), (300, 20, 4), waits=[(0, 400, 10, 4, FOR_STORE)]).run
    fast = start_of((0, 10, 4), waits=[(0, 100, 10, 4, FOR_STORE)], ready_ms=400).run
    assert difference(slow, fast) == (
        "Start 2 was ready 0.60 s sooner than start 1; it waited 0.30 s less for the store; it read 16.4 kB less."
    )
    assert difference(fast, slow).startswith("Start 2 was ready 0.60 s later than start 1; it waited 0.30 s longer")
    assert (
        difference(slow, slow)
        == "Both were ready after the same time; it waited as long for the store; it read as much."
    )
    unknown = replace(slow, waits=None, head=replace(slow.head, ready_ms=0))
    assert difference(unknown, fast).startswith("Start 2 was through 0.60 s sooner than start 1; it read ")


@pytest.mark.parametrize(
    ("begin_s", "end_s", "labels"),
    [
        (0, 0.34, "0.00 0.05 0.10 0.15 0.20 0.25 0.30"),
        (-0.12, 0.3, "-0.10 -0.05 0.00 0.05 0.10 0.15 0.20 0.25 0.30"),
        (0, 60, "0 10 20 30 40 50 60"),
        (0, 0.01, "0.000 0.002 0.004 0.006 0.008 0.010"),
    ],
)
def test_the_axis_has_few_round_ticks(begin_s: float, end_s: float, labels: str) -> None:
    axis = Axis(begin_s, end_s)
    assert [label for _, label in axis.ticks()] == labels.split()
    assert (axis.percent(begin_s), axis.percent(end_s)) == ("0.00%", "100.00%")
