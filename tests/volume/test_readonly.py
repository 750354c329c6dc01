"""A read-only volume against the bytes that it should have, whatever the cache, the store and other threads do."""

import inspect
import os
import random
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.errors import Corrupt, StoreUnavailable
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.store.memory import MemoryStore
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves
from blockmap.volume.reads import Source
from tests.image.builder import bulk
from tests.volume.building import Watched, model, publish
from tests.volume.opened import NotedReads, OpenVolume, opened, read
from tests.waiting import until

SPAN_BYTES = SPAN * BLOCK


Pieces = list[tuple[int, bytes]]


@st.composite
def volumes(draw: st.DrawFn) -> tuple[Pieces, int]:
    """Runs of data with holes between them, some across the edge of a span, some of zeros, some alike."""
    at, pieces = 0, []
    for _ in range(draw(st.integers(0, 6))):
        at += draw(st.sampled_from([0, 1, 3, 50, SPAN - 70, SPAN, 3 * SPAN]))
        blocks, seed = draw(st.integers(1, 90)), draw(st.integers(0, 3))
        data = bytes(blocks * BLOCK) if seed == 0 else bulk(seed, blocks * BLOCK)
        if draw(st.booleans()) and blocks > 2:
            data = data[:BLOCK] + bytes(BLOCK) + data[2 * BLOCK :]
        pieces.append((at, data))
        at += blocks
    return pieces, at + draw(st.integers(1, 100))


@settings(max_examples=15, deadline=None)
@given(volumes(), st.data())
def test_reads_and_extents_are_those_of_the_model(volume: tuple[Pieces, int], data: st.DataObject) -> None:
    pieces, size = volume
    store = MemoryStore()
    root = publish(store, pieces, size)
    expected = model(pieces, size)
    starts = [0, *(block * BLOCK for block, _ in pieces), *(block * BLOCK + len(run) for block, run in pieces)]
    with tempfile.TemporaryDirectory() as work, opened(store, root, Path(work), cap_bytes=300_000) as view:
        assert view.size == len(expected)
        for _ in range(12):
            near = data.draw(st.sampled_from(starts)) + data.draw(st.integers(-70_000, 70_000))
            offset = min(max(near, 0), view.size - 1)
            length = data.draw(st.integers(1, min(view.size - offset, 200_000)))
            for _ in range(2):  # missing, then at hand
                assert read(view, offset, length) == expected[offset : offset + length]
            check_extents(view, expected, offset, length)
        check_extents(view, expected, 0, view.size)


def check_extents(view: OpenVolume, expected: bytearray, offset: int, length: int) -> None:
    """They follow each other from `offset` on, end with the request, alternate, and no hole has data."""
    at, last = offset, None
    for start, count, hole in view.extents(offset, length):
        assert start == at
        assert count > 0
        assert hole is not last, "neighbours of one kind are one extent"
        if hole:
            assert not expected[start : start + count].strip(b"\0")
        at, last = start + count, hole
    assert at == offset + length


def test_extents_say_exactly_where_data_is(tmp_path: Path) -> None:
    store = MemoryStore()
    root = publish(store, [(2, bulk(1, 3 * BLOCK)), (SPAN - 1, bulk(2, 2 * BLOCK))], 1000 * SPAN)
    edge = SPAN_BYTES - BLOCK
    with opened(store, root, tmp_path) as view:
        assert view.extents(0, 1000 * SPAN_BYTES) == [
            (0, 2 * BLOCK, True),
            (2 * BLOCK, 3 * BLOCK, False),
            (5 * BLOCK, edge - 5 * BLOCK, True),
            (edge, 2 * BLOCK, False),
            (edge + 2 * BLOCK, 1000 * SPAN_BYTES - edge - 2 * BLOCK, True),
        ]
        assert view.extents(2 * BLOCK + 5, 10) == [(2 * BLOCK + 5, 10, False)]
        assert view.extents(999 * SPAN_BYTES, BLOCK) == [(999 * SPAN_BYTES, BLOCK, True)]
        assert view.extents(view.size - 1, 100) == [(view.size - 1, 1, True)]


def test_a_volume_of_zeros_asks_the_store_for_nothing(tmp_path: Path) -> None:
    store = Watched(MemoryStore())
    root = publish(store, [], 3 * SPAN)
    with opened(store, root, tmp_path) as view:
        assert read(view, 5, 100_000) == bytes(100_000)
        assert view.extents(0, view.size) == [(0, view.size, True)]
        view.want(0, view.size)
    assert store.ranges == []


def test_threads_read_through_a_cache_that_is_too_small(tmp_path: Path) -> None:
    """Slots are evicted under the readers all the time: never a wrong byte."""
    store = MemoryStore()
    pieces = [(10, bulk(1, 500 * BLOCK)), (SPAN - 100, bulk(2, 300 * BLOCK)), (2 * SPAN, bulk(3, 20 * BLOCK) * 10)]
    root = publish(store, pieces, 3 * SPAN)
    expected = model(pieces, 3 * SPAN)
    with opened(store, root, tmp_path, cap_bytes=400_000) as view:

        def reader(seed: int) -> None:
            chosen = random.Random(seed)
            for _ in range(400):
                block, data = chosen.choice(pieces)
                offset = block * BLOCK + chosen.randrange(len(data))
                length = min(chosen.randrange(1, 30_000), view.size - offset)
                if chosen.random() < 0.1:
                    view.want(offset, length)
                assert read(view, offset, length) == expected[offset : offset + length], (seed, offset, length)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(reader, range(4)))
        assert view.cache.status()["evicted"] > 0


def test_what_was_read_once_is_not_asked_for_again(tmp_path: Path) -> None:
    store = Watched(MemoryStore())
    root = publish(store, [(0, bulk(1, 600 * BLOCK))], SPAN)
    with opened(store, root, tmp_path) as view:
        whole = read(view, 0, 600 * BLOCK)
        asked = len(store.ranges)
        assert asked < 1 + 600 * BLOCK // (128 << 10), "neighbours come along"
        assert read(view, 0, 600 * BLOCK) == whole == bulk(1, 600 * BLOCK)
        assert read(view, 12_345, 100_000) == whole[12_345:112_345]
        assert len(store.ranges) == asked
    with opened(store, root, tmp_path) as view:  # nor after a start
        assert read(view, 0, 600 * BLOCK) == whole
    assert len(store.ranges) == asked


def test_the_second_read_of_one_extent_is_one_call(tmp_path: Path) -> None:
    """Also where the chunk lies nearer to the cache's beginning than the extent to its span's."""
    store = MemoryStore()
    root = publish(store, [(SPAN - 50, bulk(1, 10 * BLOCK))], SPAN)
    with opened(store, root, tmp_path) as view:
        read(view, (SPAN - 50) * BLOCK, BLOCK)
        view.fetcher.flush()
        read(view, (SPAN - 50) * BLOCK, BLOCK)
        buf = bytearray(100)
        assert view.read(memoryview(buf), (SPAN - 50) * BLOCK + 7) is None, "from the hit path"
        assert bytes(buf) == bulk(1, 10 * BLOCK)[7:107]


def test_a_read_that_is_noted_is_done_as_any_other(tmp_path: Path) -> None:
    """The two functions of the hit path are alike, line by line, but for the note and who reads slowly."""
    store = MemoryStore()
    with opened(store, publish(store, [], SPAN), tmp_path) as view:
        plain, noting = (
            [line.strip() for line in inspect.getsource(read).splitlines()]
            for read in (view.read, view.volume.reader(view.start, NotedReads()))
        )
    assert [line.replace("recorded(", "slowly(") for line in noting[1:] if not line.startswith("note(")] == plain[1:]
    assert len(noting) == len(plain) + 1


def test_a_read_that_leaves_the_hit_path_is_told_when_it_begins_and_ends(tmp_path: Path) -> None:
    store, recorder = MemoryStore(), NotedReads()
    root = publish(store, [(0, bulk(1, 4 * BLOCK))], SPAN)
    with opened(store, root, tmp_path) as view:
        read = view.volume.reader(view.start, recorder)
        read(memoryview(bytearray(BLOCK)), 0)
        assert (recorder.noted, recorder.marked) == ([0], 1)
        ((offset, length, slow),) = recorder.ended
        assert (offset, length, slow.source) == (0, BLOCK, Source.FETCHED)
        until(lambda: read(memoryview(bytearray(BLOCK)), BLOCK) is None)
        assert recorder.marked == len(recorder.ended) < len(recorder.noted), "the hit is noted, and no more"


# --- damage


def test_a_range_that_arrives_damaged_is_fetched_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Watched(MemoryStore())
    data = bulk(1, 900 * BLOCK)
    root = publish(store, [(0, data)], SPAN)
    for number in range(3):  # the first range is of a node, the others are of chunks
        seen = 0

        def damage(arrived: bytes, start: int, number: int = number) -> bytes:
            nonlocal seen
            seen += 1
            if seen != number + 1:
                return arrived
            middle = len(arrived) // 2
            return arrived[:middle] + bytes([arrived[middle] ^ 0x40]) + arrived[middle + 1 :]

        store.damage = damage
        with opened(store, root, tmp_path / str(number)) as view:
            assert read(view, 0, len(data)) == data
        assert seen > number
    assert "fetched again" in caplog.text


def test_what_stays_damaged_is_an_error_and_never_wrong_bytes(tmp_path: Path) -> None:
    store = Watched(MemoryStore())
    data = bulk(1, 300 * BLOCK)
    root = publish(store, [(0, data)], SPAN)
    with opened(store, root, tmp_path) as view:
        assert read(view, 0, 1) == data[:1]
        store.damage = lambda arrived, start: (
            arrived[:-1] + bytes([arrived[-1] ^ 1]) if len(arrived) < 300_000 else arrived
        )
        wrong = 0
        for block in range(0, 300, 7):
            try:
                assert read(view, block * BLOCK, BLOCK) == data[block * BLOCK :][:BLOCK]
            except Corrupt:
                wrong += 1
        assert wrong
        store.damage = lambda arrived, start: arrived
        assert read(view, 0, len(data)) == data, "an error is not remembered"


def test_a_store_that_does_not_answer_is_an_error_until_it_does(tmp_path: Path) -> None:
    store = Watched(MemoryStore())
    data = bulk(1, 300 * BLOCK)
    root = publish(store, [(0, data)], SPAN)
    with opened(store, root, tmp_path) as view:
        store.down = True
        with pytest.raises(StoreUnavailable):
            read(view, 0, 1)
        with pytest.raises(StoreUnavailable):
            view.extents(0, 1)
        store.down = False
        view.fetcher.outage.answered()
        assert read(view, 0, len(data)) == data
        store.down = True
        assert read(view, 0, len(data)) == data


def test_a_byte_of_the_cache_that_flips_between_two_starts_is_fetched_again(tmp_path: Path) -> None:
    store = Watched(MemoryStore())
    data = bulk(1, 60 * BLOCK)
    root = publish(store, [(0, data)], SPAN)
    with opened(store, root, tmp_path) as view:
        read(view, 0, len(data))
    size = os.stat(tmp_path / "data").st_size
    for at in range(0, size, 10 * BLOCK + 123):
        with open(tmp_path / "data", "r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 8]))
        with opened(store, root, tmp_path) as view:
            assert read(view, 0, len(data)) == data
            assert read(view, 5, 1000) == data[5:1005]
    os.truncate(tmp_path / "data", size // 3)
    with opened(store, root, tmp_path) as view:
        assert read(view, 0, len(data)) == data


def test_a_cache_that_served_another_store_is_no_trap(tmp_path: Path) -> None:
    """The same volume in two stores: its nodes are alike, where its chunks are is not."""
    data = bulk(1, 300 * BLOCK)
    one, other = MemoryStore(), MemoryStore()
    roots = [publish(store, [(5, data), (2 * SPAN, data)], 3 * SPAN) for store in (one, other)]
    assert roots[0].digest == roots[1].digest
    with opened(one, roots[0], tmp_path) as view:
        view.extents(0, view.size)  # nodes, and no chunk
    with opened(other, roots[1], tmp_path) as view:
        assert read(view, 5 * BLOCK, len(data)) == data


def test_leaves_that_fall_out_of_memory_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockmap.volume.leaves._LEAVES_IN_MEMORY", 2)
    pieces = [(span * SPAN, bulk(span, 5 * BLOCK)) for span in range(5)]
    store = MemoryStore()
    root = publish(store, pieces, 5 * SPAN)
    expected = model(pieces, 5 * SPAN)
    with opened(store, root, tmp_path) as view:
        for _ in range(2):
            for block, _ in pieces:
                assert read(view, block * BLOCK + 1, 9000) == expected[block * BLOCK + 1 :][:9000]
        assert len(view.volume._leaves._by_span) <= 3
        assert view.volume._leaves.hot.keys() == view.volume._leaves._by_span.keys()


def test_want_brings_a_range_once_the_store_answers(tmp_path: Path) -> None:
    """Neither nodes nor chunks are waited for."""
    store = Watched(MemoryStore())
    data = bulk(1, 300 * BLOCK)
    root = publish(store, [(0, data), (SPAN + 7, data[: 9 * BLOCK])], 2 * SPAN)
    with opened(store, root, tmp_path) as view:
        store.gate.clear()
        done = threading.Event()

        def want() -> None:
            view.want(0, view.size)
            done.set()

        threading.Thread(target=want, daemon=True).start()
        try:
            assert done.wait(10)
        finally:
            store.gate.set()
        chunks = {chunk for _, leaf in leaves(root, Repository(store).packs.nodes) for chunk in leaf.chunks}
        until(lambda: all(view.cache.lookup(chunk) >= 0 for chunk in chunks))
        asked = len(store.ranges)
        store.down = True
        assert read(view, 0, len(data)) == data
        assert read(view, (SPAN + 7) * BLOCK, 9 * BLOCK) == data[: 9 * BLOCK]
        assert len(store.ranges) == asked
    view.want(0, view.size)  # after the end, too


def test_want_does_not_raise_while_the_store_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    store = Watched(MemoryStore())
    root = publish(store, [(0, bulk(1, 9 * BLOCK))], SPAN)
    store.down = True
    with opened(store, root, tmp_path) as view:
        view.want(0, view.size)
        until(lambda: "wanted for later is not fetched" in caplog.text)


# --- what a read says of itself


def test_a_read_says_where_its_bytes_came_from(tmp_path: Path) -> None:
    store = MemoryStore()
    root = publish(store, [(0, bulk(1, 10 * BLOCK)), (SPAN, bulk(2, BLOCK))], 2 * SPAN)

    def source(view: OpenVolume, block: int, blocks: int) -> str | None:
        slow = view.read(memoryview(bytearray(blocks * BLOCK)), block * BLOCK)
        assert slow is None or 0 < slow.seconds < 30
        return slow and slow.source.name

    with opened(store, root, tmp_path / "one") as view:
        assert source(view, SPAN - 1, 2) == "FETCHED"  # zeros, too
        assert source(view, 50, 20) == "ZEROS"
    with opened(store, root, tmp_path / "two") as view:
        assert source(view, 0, 1) == "FETCHED"
        view.fetcher.flush()
        assert source(view, 0, 1) == "CACHE"  # where in the cache was not known yet
        assert source(view, 0, 1) is None
        assert source(view, 0, 20) == "CACHE"  # zeros, too
        assert view.volume.waiting == 0


def test_reads_that_wait_for_the_store_are_counted(tmp_path: Path) -> None:
    store = Watched(MemoryStore())
    root = publish(store, [(0, bulk(1, 10 * BLOCK))], SPAN)
    with opened(store, root, tmp_path) as view, ThreadPoolExecutor(3) as pool:
        store.gate.clear()
        reads = [pool.submit(read, view, 0, BLOCK) for _ in range(3)]
        try:
            end = time.monotonic() + 30
            while view.volume.waiting < 3 and time.monotonic() < end:
                os.sched_yield()
            assert view.volume.waiting == 3
        finally:
            store.gate.set()
        assert {each.result() for each in reads} == {bulk(1, BLOCK)}
        assert view.volume.waiting == 0
        store.down = True
        view.fetcher.flush()
        view.fetcher.cache.clear()
        with pytest.raises(StoreUnavailable):
            read(view, 0, BLOCK)
        assert view.volume.waiting == 0
