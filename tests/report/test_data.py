"""The numbers behind a report's plots."""

import numpy as np
import pytest

from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.filemap import File
from blockmap.format.trace import FOR_PREFETCH, FOR_STORE, Trace, TraceHead
from blockmap.report.data import Image, ReportRun, analyse, cover, union
from blockmap.report.files import directory, index, owners, packager, shown
from tests.report.hostile import reads_of, waits_of

FILES = [File(b"a", 4 * BLOCK, [(10, 2), (30, 2)]), File(b"d/b", BLOCK, [(12, 1)]), File(b"same", BLOCK, [(12, 1)])]


def run_of(
    *reads: tuple[int, int, int], ready_ms: int = 0, waits: list[tuple[int, int, int, int, int]] | None = None
) -> ReportRun:
    """Reads (milliseconds, first block, blocks); waits (began, took, first block, blocks, reason)."""
    files = index(FILES)
    image = Image(files, files.labels(directory), 100 * BLOCK, False)
    head = TraceHead("r", "default", Digest(bytes(32)), Digest(bytes(32)), 1 << 30, 0, ready_ms=ready_ms)
    return analyse(Trace(head, reads_of(*reads), None if waits is None else waits_of(*waits)), image)


def test_files_are_found_by_block() -> None:
    assert index(FILES).find(np.array([9, 10, 11, 12, 13, 29, 30, 31, 32])).tolist() == [0, 1, 1, 2, 0, 0, 1, 1, 0]
    assert index([]).find(np.array([0, 5])).tolist() == [0, 0]


def test_each_block_counts_once_when_it_is_first_read() -> None:
    run = run_of((1, 10, 3), (2, 12, 2), (3, 10, 3), (4, 31, 1))
    assert run.touched.tolist() == [10, 11, 12, 13, 31]
    assert run.touched_file.tolist() == [1, 1, 2, 0, 1]
    assert run.touched_s.tolist() == [0.001, 0.001, 0.001, 0.002, 0.004]
    assert (run.reads, run.bytes, run.touched_bytes, run.file_count) == (4, 9 * BLOCK, 5 * BLOCK, 2)


def test_a_read_of_parts_of_blocks_touches_both() -> None:
    run = run_of((1, 10, 1))
    reads = reads_of((1, 10, 1))
    reads["offset"] += 512
    assert analyse(Trace(run.head, reads), run.image).touched.tolist() == [10, 11]


def test_a_trace_without_reads_has_numbers_all_the_same() -> None:
    run = run_of(waits=[])
    assert (run.end_s, run.touched_bytes, run.file_count, run.first_byte_s, run.ahead_share) == (0.0, 0, 0, None, None)
    assert len(cover(run, np.array([10, 11])).wasted) == 2


def test_blocks_came_as_the_first_wait_for_them_says() -> None:
    run = run_of(
        (0, 10, 3), (60, 30, 2), (70, 10, 3),
        waits=[(0, 50, 10, 2, FOR_STORE), (60, 5, 31, 1, FOR_PREFETCH), (70, 5, 12, 1, FOR_STORE), (71, 5, 11, 1, FOR_PREFETCH)],
        ready_ms=100,
    )  # fmt: skip
    assert run.touched.tolist() == [10, 11, 12, 30, 31]
    assert run.touched_by.tolist() == [FOR_STORE, FOR_STORE, FOR_STORE, 0, FOR_PREFETCH]
    assert run.ahead_share == pytest.approx(2 / 5)
    assert run.first_byte_s == pytest.approx(0.05)
    assert run.waits is not None
    assert run.waits.total_s(0, 0.1) == pytest.approx(0.061)
    assert run.waits.total_s(0, 0.04) == pytest.approx(0.04)


def test_without_waits_nothing_is_said_of_them() -> None:
    run = run_of((0, 10, 3), ready_ms=100)
    assert (run.waits, run.ahead_share, run.first_byte_s) == (None, None, None)


def test_a_start_ends_when_it_is_ready() -> None:
    run = run_of(
        (0, 10, 3),
        (90, 30, 1),
        (110, 31, 1),
        ready_ms=100,
        waits=[(90, 50, 30, 1, FOR_STORE), (110, 5, 31, 1, FOR_STORE)],
    )
    assert (run.end_s, run.reads, run.later_reads, run.last_s) == (0.1, 2, 1, 0.11)
    assert run.waits is not None
    assert len(run.waits.start_s) == 1
    assert run.waits.total_s(0, run.end_s) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("reads", "waits", "end_s"),
    [
        ([(0, 0, 100), (300, 200, 100), (1200, 400, 1), (8500, 500, 1)], [], 0.3),
        ([(0, 0, 100), (300, 200, 100), (1200, 400, 50)], [], 1.2),
        ([(0, 0, 100), (1000, 400, 1), (8500, 500, 1)], [(0, 990, 0, 1, FOR_STORE)], 1.0),
        ([(0, 0, 100), (300, 200, 100)], [(300, 900, 200, 1, FOR_STORE)], 1.2),
        ([(n * 1000, n, 1) for n in range(100)], [], 99.0),
    ],
    ids=["idle reads are left out", "a late burst is none of them", "a wait is no rest", "nor at the end", "all alike"],
)
def test_where_nobody_said_ready_a_start_ends_with_its_last_burst(
    reads: list[tuple[int, int, int]], waits: list[tuple[int, int, int, int, int]], end_s: float
) -> None:
    assert run_of(*reads, waits=waits).end_s == pytest.approx(end_s)


def test_spans_are_joined() -> None:
    assert union([(3, 4), (0, 1), (0.5, 2)]) == [(0, 2), (3, 4)]
    assert union([(3, 4), (0, 1), (0.5, 2)], 1) == [(0, 4)]


def test_a_profile_covers_misses_and_wastes() -> None:
    coverage = cover(run_of((1, 10, 3), (2, 50, 1)), np.array([11, 12, 12, 30, 60]))
    assert coverage.covered.tolist() == [1, 2]
    assert coverage.missed.tolist() == [1, 0]
    assert coverage.wasted.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"usr/bin/x", "/usr/bin/x"),
        ("größe".encode(), "/größe"),
        (b"\xff\n", "/\\xff\\x0a"),
        ("\u202e\u2028".encode(), "/\\u202e\\u2028"),
        (b"\\(x\\)", "/\\x5c(x\\x5c)"),
        ("\U000e0001".encode(), "/\\U000e0001"),
    ],
)
def test_paths_are_shown_without_what_a_page_could_take_for_more(path: bytes, text: str) -> None:
    assert shown(path) == text


def test_packages_come_from_the_records_of_distributions_and_from_library_folders() -> None:
    records = {
        b"var/lib/dpkg/info/libc6:amd64.list": b"/.\n/lib/x86_64-linux-gnu/libc.so.6\n/usr/lib/python3/re.py\n",
        b"lib/apk/db/installed": b"C:Q1\nP:musl\nV:1\nF:lib\nR:ld-musl.so\nF:\nR:top\n\nP:zlib\nF:usr/lib\nR:libz.so\n",
    }
    files, content = [], {}
    for number, (path, data) in enumerate(records.items()):
        files.append(File(path, len(data), [(number, 1)]))
        content[number * BLOCK] = data.ljust(BLOCK, b"\0")
    label = packager(owners(files, lambda offset, length: content[offset][:length]))
    assert label(b"usr/lib/x86_64-linux-gnu/libc.so.6") == "libc6"
    assert label(b"usr/lib/python3/__pycache__/re.cpython-311.pyc") == "libc6"
    assert [label(path) for path in (b"lib/ld-musl.so", b"top", b"usr/lib/libz.so")] == ["musl", "musl", "zlib"]
    assert label(b"opt/venv/lib/python3.11/site-packages/flask/app.py") == "flask"
    assert label(b"app/node_modules/@scope/name/index.js") == "@scope/name"
    assert label(b"opt/app/main") == "/opt/app"
    assert label(b"opt/site-packages/six.py") == "/opt/site-packages"
