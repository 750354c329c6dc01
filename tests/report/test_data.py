"""The numbers behind a report's plots."""

import numpy as np
import pytest

from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.filemap import File
from blockmap.format.trace import Trace, TraceHead
from blockmap.report.data import Image, ReportRun, analyse, biggest_groups, cover, find_pauses, lanes
from blockmap.report.files import METADATA, directory, index, owners, packager, shown
from blockmap.store.call import Call
from tests.report.hostile import reads_of

FILES = [File(b"a", 4 * BLOCK, [(10, 2), (30, 2)]), File(b"d/b", BLOCK, [(12, 1)]), File(b"same", BLOCK, [(12, 1)])]


def run_of(*reads: tuple[int, int, int], ready_ms: int = 0) -> ReportRun:
    files = index(FILES)
    image = Image(files, files.labels(directory), 100 * BLOCK, False)
    head = TraceHead("r", "default", Digest(bytes(32)), Digest(bytes(32)), 1 << 30, 0, ready_ms=ready_ms)
    return analyse("r", Trace(head, reads_of(*reads)), image)


def test_files_are_found_by_block() -> None:
    assert index(FILES).find(np.array([9, 10, 11, 12, 13, 29, 30, 31, 32])).tolist() == [0, 1, 1, 2, 0, 0, 1, 1, 0]
    assert index([]).find(np.array([0, 5])).tolist() == [0, 0]


def test_each_block_counts_once_when_it_is_first_read() -> None:
    run = run_of((1, 10, 3), (2, 12, 2), (3, 10, 3), (4, 31, 1))
    assert run.touched.tolist() == [10, 11, 12, 13, 31]
    assert run.touched_file.tolist() == [1, 1, 2, 0, 1]
    assert run.touched_s.tolist() == [0.001, 0.001, 0.001, 0.002, 0.004]
    assert run.file.tolist() == [1, 2, 1, 1]
    assert run.more_files.tolist() == [1, 0, 1, 0]
    assert (run.bytes, run.touched_bytes, run.file_count) == (9 * BLOCK, 5 * BLOCK, 2)


def test_a_read_from_metadata_into_a_file_names_the_file_as_a_further_one() -> None:
    assert run_of((1, 9, 2)).more_files.tolist() == [1]


def test_a_read_of_parts_of_blocks_touches_both() -> None:
    run = run_of((1, 10, 1))
    reads = reads_of((1, 10, 1))
    reads["offset"] += 512
    assert analyse("r", Trace(run.head, reads), run.image).touched.tolist() == [10, 11]


def test_a_trace_without_reads_has_numbers_all_the_same() -> None:
    run = run_of()
    assert (run.end_s, run.touched_bytes, run.file_count) == (0.0, 0, 0)
    assert len(find_pauses(run, None).start_s) == 0
    assert len(cover(run, np.array([10, 11])).wasted) == 2


def test_pauses_are_shared_out_between_the_store_and_the_rest() -> None:
    run = run_of((0, 10, 1), (1, 12, 1), (101, 30, 1), (102, 31, 1), ready_ms=150)
    calls = [
        Call("get_range", "k", 0.011, 0.030, 1, None),
        Call("get_range", "k", 0.021, 0.040, 1, None),
        Call("get", "k", 0.140, 0.5, 1, None),
    ]
    pauses = find_pauses(run, calls)
    assert pauses.start_s.tolist() == [0.001, 0.102]
    assert pauses.length_s.tolist() == pytest.approx([0.1, 0.048])
    assert pauses.asking_s.tolist() == pytest.approx([0.050, 0.010])
    assert pauses.file.tolist() == [2, 1]
    assert not find_pauses(run, None).known


def test_calls_under_way_together_lie_in_different_rows() -> None:
    calls = [Call("get", "k", start, seconds, 0, None) for start, seconds in ((0, 2), (1, 3), (2, 1), (3.5, 1))]
    assert lanes(calls) == [0, 1, 0, 0]


def test_a_profile_covers_misses_and_wastes() -> None:
    coverage = cover(run_of((1, 10, 3), (2, 50, 1)), np.array([11, 12, 12, 30, 60]))
    assert coverage.covered.tolist() == [1, 2]
    assert coverage.missed.tolist() == [1, 0]
    assert coverage.wasted.tolist() == [1, 0]


def test_groups_are_sorted_by_bytes_over_all_runs() -> None:
    runs = [run_of((1, 10, 2), (2, 12, 1)), run_of((1, 12, 1), (2, 100, 3))]
    assert biggest_groups(runs, "file", 9) == [METADATA, "/a", "/d/b"]
    assert biggest_groups(runs, "directory", 2) == [METADATA, "/"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"usr/bin/x", "/usr/bin/x"),
        ("größe".encode(), "/größe"),
        (b"\xff\n", "/\\xff\\x0a"),
        ("\u202e\u2028".encode(), "/\\u202e\\u2028"),
        (b"$$x$$", "/$\\x24x$\\x24"),
        (b"$$$", "/$\\x24$"),
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
