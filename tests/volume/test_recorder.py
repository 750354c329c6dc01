"""The file of a trace: what many threads note, what is in it at any moment, and what it is cut to."""

import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from blockmap.format.trace import HEAD_BYTES, RECORD, End
from blockmap.volume import recorder as recorders
from blockmap.volume.reads import Slow, Source
from blockmap.volume.recorder import RECORDS, Recorder, make_room, rewrite_head
from tests.volume.starting import Clock, View, head, ranges, stored
from tests.waiting import until

FULL_BYTES = HEAD_BYTES + RECORDS * RECORD.size


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns in the middle of everything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def note(recorder: Recorder, offset: int, length: int = 4096) -> None:
    recorder.around(View().read)(memoryview(bytearray(length)), offset)


def test_a_read_is_noted_before_it_is_done(tmp_path: Path) -> None:
    clock = Clock()
    recorder = Recorder(tmp_path / "new" / "folder", head(1234), clock(), clock_ns=clock)
    slow = Slow(Source.FETCHED, 0.1)
    seen = []

    def read(buf: memoryview, offset: int) -> Slow:
        seen.append((offset, len(buf), len(recorder.reads())))
        return slow

    clock.forward(1.5)
    record = recorder.around(read)
    assert record(memoryview(bytearray(512)), 1 << 40) is slow
    clock.forward(0.25)
    record(memoryview(bytearray(4096)), 0)
    assert seen == [(1 << 40, 512, 1), (0, 4096, 2)]
    assert recorder.reads().tolist() == [(1_500_000, 512, 1 << 40), (1_750_000, 4096, 0)]
    assert recorder.reads(1).tolist() == [(1_750_000, 4096, 0)]
    assert os.path.basename(recorder.path) == "0000000000001234-0.trace"
    assert recorder.path.stat().st_mode & 0o777 == 0o600
    assert os.stat(recorder.path).st_blocks * 512 >= FULL_BYTES, "a page that is not there yet may never come"
    recorder.end(lambda reads: head())


def test_an_error_of_the_read_is_the_readers(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, head(), time.monotonic_ns())

    def fail(buf: memoryview, offset: int) -> None:
        raise TypeError("the read's own")

    with pytest.raises(TypeError, match="the read's own"):
        recorder.around(fail)(memoryview(bytearray(1)), 0)
    recorder.end(lambda reads: head())


def test_the_file_can_be_read_at_any_moment(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, head(), time.monotonic_ns())
    for number in range(3):
        assert ranges(stored(recorder.path)) == [(n * 4096, 4096) for n in range(number)]
        note(recorder, number * 4096)
    assert stored(recorder.path).head.end == End.OPEN
    recorder.end(lambda reads: replace(head(), end=End.READY))


def test_threads_lose_nothing(tmp_path: Path, often: None) -> None:
    threads, each = 8, 5000
    recorder = Recorder(tmp_path, head(), time.monotonic_ns())
    start = threading.Barrier(threads)

    def read(thread: int) -> None:
        record = recorder.around(View().read)
        buf = memoryview(bytearray(1))
        start.wait()
        for number in range(each):
            record(buf, thread << 20 | number)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))
    recorder.end(lambda reads: head())
    found = [offset for offset, _ in ranges(stored(recorder.path))]
    assert len(found) == threads * each
    for thread in range(threads):
        assert [n & 0xFFFFF for n in found if n >> 20 == thread] == list(range(each)), "each thread in its order"


def test_full(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, head(), time.monotonic_ns(), records=10)
    for number in range(25):
        note(recorder, number)
    assert [int(n) for n in recorder.reads()["offset"]] == list(range(10))
    recorder.end(lambda reads: head())
    assert recorder.path.stat().st_size == HEAD_BYTES + 10 * RECORD.size
    assert [offset for offset, _ in ranges(stored(recorder.path))] == list(range(10))


def test_it_ends_under_readers(tmp_path: Path, often: None) -> None:
    """The file is cut while threads write into it: what comes too late is not noted, and nothing else happens."""
    for _ in range(10):
        recorder = Recorder(tmp_path, head(), time.monotonic_ns())
        going, stop = threading.Barrier(5), threading.Event()

        def read(recorder: Recorder = recorder, going: threading.Barrier = going, stop: threading.Event = stop) -> int:
            record, done = recorder.around(View().read), 0
            buf = memoryview(bytearray(1))
            going.wait()
            while not stop.is_set():
                record(buf, done)
                done += 1
            return done

        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read) for _ in range(4)]
            going.wait()
            until(lambda recorder=recorder: len(recorder.reads()) >= 100)  # type: ignore[misc]
            counts: list[int] = []
            recorder.end(lambda reads, counts=counts: counts.append(len(reads)) or head())  # type: ignore[func-returns-value, misc]
            size = recorder.path.stat().st_size
            stop.set()
            assert sum(each.result() for each in readers) >= counts[0] >= 100
        assert recorder.path.stat().st_size == size == HEAD_BYTES + counts[0] * RECORD.size
        assert len(stored(recorder.path).reads) == counts[0]
        assert not len(recorder.reads())


def test_a_read_that_came_too_late_leaves_no_hole(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, head(), time.monotonic_ns())
    note(recorder, 1)
    recorder._position()  # a thread that has its place, and nothing in it
    note(recorder, 2)
    assert [offset for offset, _ in ranges(stored(recorder.path))] == [1]
    recorder.end(lambda reads: head())
    assert [offset for offset, _ in ranges(stored(recorder.path))] == [1, 2]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Recorder(tmp_path, head(), time.monotonic_ns())
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_of_starts_at_the_same_moment(tmp_path: Path) -> None:
    names = [Recorder(tmp_path, head(5), time.monotonic_ns()) for _ in range(3)]
    assert [each.path.name[-8:] for each in names] == ["-0.trace", "-1.trace", "-2.trace"]
    for each in names:
        each.end(lambda reads: head())


def test_a_head_that_says_more(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, head(), time.monotonic_ns())
    note(recorder, 3)
    recorder.end(lambda reads: replace(head(), end=End.QUIET))
    rewrite_head(recorder.path, replace(head(), end=End.QUIET, ready_ms=7))
    trace = stored(recorder.path)
    assert (trace.head.ready_ms, trace.head.end, ranges(trace)) == (7, End.QUIET, [(3, 4096)])
    with pytest.raises(FileNotFoundError):
        rewrite_head(tmp_path / "gone.trace", head())


def test_the_oldest_go_first(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:016d}-0{recorders.SUFFIX}").write_bytes(bytes(100))
    (tmp_path / "notes").write_bytes(bytes(10_000))

    def left() -> list[int]:
        return sorted(int(path.name[:16]) for path in tmp_path.glob("*.trace"))

    make_room(tmp_path, 15, 10_000)
    assert left() == list(range(5, 20))
    make_room(tmp_path, 15, 1050)
    assert left() == list(range(10, 20))
    assert (tmp_path / "notes").exists()
