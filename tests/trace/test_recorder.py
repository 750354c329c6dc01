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
from hypothesis import given
from hypothesis import strategies as st

from blockmap.format.trace import FOR_PREFETCH, FOR_STORE, HEAD_BYTES, READ, End
from blockmap.local.paths import TRACE_SUFFIX
from blockmap.trace.recorder import Recorder, make_room, rewrite_head
from blockmap.volume.reads import Slow, Source
from tests.trace.starting import Clock, head, noted, ranges, stored
from tests.waiting import until


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns in the middle of everything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def note(recorder: Recorder, offset: int, length: int = 4096) -> None:
    recorder.note(noted(offset, length))


def test_reads_have_the_time_of_their_mark_or_are_spread_between(tmp_path: Path) -> None:
    clock = Clock()
    recorder = Recorder(tmp_path / "new" / "folder", head(1234), clock(), clock_ns=clock)
    clock.forward(1.5)
    note(recorder, 1 << 33, 512)
    recorder.mark()
    for offset in (1, 2, 3):
        note(recorder, offset)
    clock.forward(0.4)
    note(recorder, 4)
    recorder.mark()
    note(recorder, 5)
    clock.forward(0.1)
    assert recorder.reads().tolist() == [
        (1_500_000, 512, 1 << 33),
        (1_660_000, 4096, 1),
        (1_740_000, 4096, 2),
        (1_820_000, 4096, 3),
        (1_900_000, 4096, 4),
        (1_966_666, 4096, 5),
    ]
    assert recorder.reads(5)["offset"].tolist() == [5]
    clock.forward(1.0)
    note(recorder, 6)
    recorder.mark()
    assert recorder.reads(6).tolist() == [(3_000_000, 4096, 6)]
    assert os.path.basename(recorder.path) == "0000000000001234-0.trace"
    assert recorder.path.stat().st_mode & 0o777 == 0o600
    recorder.end(lambda reads: head())


def test_reads_that_waited_are_in_the_file_at_the_end(tmp_path: Path) -> None:
    clock = Clock()
    recorder = Recorder(tmp_path, head(), clock(), records=4, clock_ns=clock)
    clock.forward(1.0)
    slow = [
        (Source.FETCHED, 0.0001), (Source.BUNDLE, 0.0), (Source.CACHE, 0.25), (Source.CACHE, 0.0001), (Source.ZEROS, 0.0001),
        (Source.FETCHED, 2.0), (Source.FETCHED, 0.1),
    ]  # fmt: skip
    for number, (source, seconds) in enumerate(slow):
        note(recorder, number * 4096)
        recorder.waited(number * 4096, 4096, Slow(source, seconds))
    assert stored(recorder.path).waits is None, "not before the end"
    recorder.end(lambda reads: head())
    found = stored(recorder.path)
    assert len(found.reads) == 4
    assert found.waits is not None
    assert [each[:5] for each in found.waits.tolist()] == [
        (999_900, 100, 0, 4096, FOR_STORE),
        (1_000_000, 0, 4096, 4096, FOR_PREFETCH),
        (750_000, 250_000, 8192, 4096, FOR_PREFETCH),
        (0, 2_000_000, 5 * 4096, 4096, FOR_STORE),
    ]


def test_a_pause_is_not_spread_over_the_reads_after_it(tmp_path: Path) -> None:
    clock = Clock()
    recorder = Recorder(tmp_path, head(), clock(), clock_ns=clock)
    for _ in range(30):
        clock.forward(0.1)
        recorder.drain()
    for offset in range(4):
        note(recorder, offset)
    clock.forward(0.1)
    assert recorder.reads()["time_us"].tolist() == [3_020_000, 3_040_000, 3_060_000, 3_080_000]
    recorder.end(lambda reads: head())


@given(
    reads=st.lists(
        st.tuples(
            st.integers(0, (1 << 45) - 1), st.just(4096) | st.integers(1, 1 << 26), st.floats(0, 2), st.booleans()
        ),
        max_size=30,
    ),
    far=st.booleans(),
)
def test_what_is_noted_comes_back(
    tmp_path_factory: pytest.TempPathFactory, reads: list[tuple[int, int, float, bool]], far: bool
) -> None:
    clock = Clock()
    recorder = Recorder(tmp_path_factory.mktemp("traces"), head(), clock(), clock_ns=clock)
    began = clock()
    wanted, moments = [], []
    for offset, length, pause, marked in reads:
        clock.forward(pause)
        offset = offset if far else offset % (1 << 30)
        note(recorder, offset, length)
        if marked:
            recorder.mark()
        wanted.append((offset, length))
        moments.append((clock() - began) // 1000 if marked else None)
    clock.forward(0.5)
    found = recorder.reads()
    assert [(int(each["offset"]), int(each["length"])) for each in found] == wanted
    times = found["time_us"].tolist()
    assert times == sorted(times)
    assert all(moment is None or abs(time - moment) <= 2 for time, moment in zip(times, moments, strict=True))
    recorder.end(lambda reads: head())
    assert recorder.path.stat().st_size == HEAD_BYTES + READ.itemsize * (len(wanted) + 1)


def test_the_file_can_be_read_at_any_moment(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, head(), time.monotonic_ns())
    for number in range(3):
        assert ranges(stored(recorder.path)) == [(n * 4096, 4096) for n in range(number)]
        note(recorder, number * 4096)
        recorder.drain()
    assert stored(recorder.path).head.end == End.OPEN
    recorder.end(lambda reads: replace(head(), end=End.READY))


def test_threads_lose_nothing(tmp_path: Path, often: None) -> None:
    threads, each = 8, 5000
    recorder = Recorder(tmp_path, head(), time.monotonic_ns())
    start = threading.Barrier(threads + 1)
    over = threading.Event()

    def read(thread: int) -> None:
        start.wait()
        for number in range(each):
            note(recorder, thread << 20 | number, 1)
            if number % 100 == 0:
                recorder.mark()

    def drain() -> None:
        start.wait()
        while not over.is_set():
            recorder.drain()

    with ThreadPoolExecutor(threads + 1) as pool:
        drainer = pool.submit(drain)
        for reader in [pool.submit(read, thread) for thread in range(threads)]:
            reader.result()
        over.set()
        drainer.result()
    recorder.end(lambda reads: head())
    found = [offset for offset, _ in ranges(stored(recorder.path))]
    assert len(found) == threads * each
    for thread in range(threads):
        assert [n & 0xFFFFF for n in found if n >> 20 == thread] == list(range(each)), "each thread in its order"


def test_full(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, head(), time.monotonic_ns(), records=10)
    for number in range(25):
        note(recorder, number)
        if number % 7 == 0:
            recorder.drain()
    assert [int(n) for n in recorder.reads()["offset"]] == list(range(10))
    recorder.end(lambda reads: head())
    assert recorder.path.stat().st_size == HEAD_BYTES + 11 * READ.itemsize
    assert [offset for offset, _ in ranges(stored(recorder.path))] == list(range(10))


def test_it_ends_under_readers(tmp_path: Path, often: None) -> None:
    """What comes too late is not noted, and nothing else happens."""
    for _ in range(10):
        recorder = Recorder(tmp_path, head(), time.monotonic_ns())
        going, stop = threading.Barrier(5), threading.Event()

        def read(recorder: Recorder = recorder, going: threading.Barrier = going, stop: threading.Event = stop) -> int:
            done = 0
            going.wait()
            while not stop.is_set():
                note(recorder, done)
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
        assert recorder.path.stat().st_size == size == HEAD_BYTES + (counts[0] + 1) * READ.itemsize
        assert len(stored(recorder.path).reads) == counts[0]
        assert not len(recorder.reads())


def test_a_disk_that_is_full_from_the_beginning_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "pwrite", full_disk)
    with pytest.raises(OSError, match="No space left"):
        Recorder(tmp_path, head(), time.monotonic_ns())
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_that_fills_up_leaves_what_was_read_until_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path, head(), time.monotonic_ns())
    note(recorder, 1)
    recorder.drain()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full_disk)
        note(recorder, 2)
        recorder.drain()
    note(recorder, 3)
    assert recorder.reads()["offset"].tolist() == [1]
    with pytest.raises(OSError, match="No space left"):
        recorder.end(lambda reads: head())
    assert ranges(stored(recorder.path)) == [(1, 4096)]


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


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
        (tmp_path / f"{number:016d}-0{TRACE_SUFFIX}").write_bytes(bytes(100))
    (tmp_path / "notes").write_bytes(bytes(10_000))

    def left() -> list[int]:
        return sorted(int(path.name[:16]) for path in tmp_path.glob("*.trace"))

    make_room(tmp_path, 15, 10_000)
    assert left() == list(range(5, 20))
    make_room(tmp_path, 15, 1050)
    assert left() == list(range(10, 20))
    assert (tmp_path / "notes").exists()
