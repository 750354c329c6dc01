"""A start works whatever becomes of its bundle, of the store, and of the cache."""

import logging
import threading
import time
from pathlib import Path

import pytest

from blockmap.cache.cache import Cache
from blockmap.cache.staging import StagingArea
from blockmap.cache.verifier import Verifier
from blockmap.errors import StoreUnavailable
from blockmap.format import BLOCK, keys
from blockmap.format.chunker import SPAN
from blockmap.format.tree import Root
from blockmap.origin.ranges import Ranges
from blockmap.replay.replays import Replays
from blockmap.store.memory import MemoryStore
from blockmap.store.packs import Packs
from tests.image.builder import bulk
from tests.volume.building import Watched, publish
from tests.volume.bundled import BLOCKS, DATA, FAR, KEY, SIZE, WANTED, bundled, expected
from tests.volume.opened import opened, read_blocks
from tests.waiting import until


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def root(store: MemoryStore) -> Root:
    return publish(store, [(0, DATA), (SPAN, FAR)], SIZE)


def test_what_has_come_is_read_though_the_store_is_away(
    store: MemoryStore, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockmap.replay.frames._REST_S", 1000.0)
    about = bundled(store, root, range(100), ported=True, besides=range(100, 400))
    watched = Watched(store)
    with opened(watched, root, tmp_path, about) as view:
        until(lambda: view.replay.bytes == about.length)
        watched.down = True
        with pytest.raises(StoreUnavailable):
            read_blocks(view, 700)
        assert view.fetcher.outage.away
        assert not view.replay.ended, "what may be read besides is not open yet"
        assert read_blocks(view, 300, 5) == expected(300, 5)
        assert view.replay.bypassed_reads == 0


@pytest.mark.parametrize("damage", ["absent", "head", "frame", "short", "other"])
def test_a_start_works_whatever_its_bundle_is(
    store: MemoryStore, root: Root, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    about = bundled(store, root, list(range(BLOCKS)))
    whole = bytearray(store.get(KEY))
    store.delete(KEY)
    if damage == "head":
        whole[about.table // 2] ^= 1
    elif damage == "frame":
        for at in range(about.table + 50_000, len(whole), 200_000):
            whole[at] ^= 1
    elif damage == "short":
        del whole[len(whole) // 2 :]
    elif damage == "other":
        whole = bytearray(bulk(9, len(whole)))
    if damage != "absent":
        store.create(KEY, [bytes(whole)])
    with caplog.at_level(logging.WARNING), opened(store, root, tmp_path, about) as view:
        assert view.replay.wait_nodes() or view.replay.failed
        for block in range(0, BLOCKS, 7):
            assert read_blocks(view, block, 5) == expected(block, 5)
        assert view.replay.wait_end(60)
        status = view.replay.status()
        assert status["damaged"] if damage == "frame" else status["failed"]
        assert [each.getMessage().count("slower than it could be") for each in caplog.records] == [1], "said once"
        assert view.begin(about) is view.replay, "an open soon after does not ask for it again"


def test_a_stream_that_stalls_holds_nobody_up_for_long(
    store: MemoryStore, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockmap.replay.replay._STALL_S", 0.05)
    about = bundled(store, root, list(range(BLOCKS)))

    class Stalling(Watched):
        def get_range(self, key: str, start: int, end: int) -> bytes | memoryview:  # type: ignore[override]
            if key == KEY and start:
                assert self.gate.wait(30)
            return self.inner.get_range(key, start, end)

    watched = Stalling(store)
    watched.gate.clear()
    with opened(watched, root, tmp_path, about) as view:
        try:
            assert view.replay.wait_nodes()
            assert read_blocks(view, 0, BLOCKS) == expected(0, BLOCKS)
            assert view.replay.waited_reads
        finally:
            watched.gate.set()


class Stalling(Watched):
    """Gives of a bundle only what begins before `limit`, until the gate opens."""

    limit = 1

    def get_range(self, key: str, start: int, end: int) -> bytes | memoryview:  # type: ignore[override]
        if key == KEY and start >= self.limit:
            assert self.gate.wait(30)
        return self.inner.get_range(key, start, end)


def test_one_reader_in_vain_is_enough(
    store: MemoryStore, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockmap.replay.replay._STALL_S", 0.05)
    about = bundled(store, root, list(range(BLOCKS)))
    watched = Stalling(store)
    watched.gate = threading.Event()
    with opened(watched, root, tmp_path, about) as view:
        try:
            assert view.replay.wait_nodes()
            until(lambda: view.replay.bytes > 0)
            for block in range(0, BLOCKS, 20):
                assert read_blocks(view, block) == expected(block)
            assert view.replay.waited_reads - view.replay.chunks <= 1
            assert view.replay.bypassed_reads > 3
        finally:
            watched.gate.set()
        assert view.replay.wait_end(60)
        assert not view.replay.failed


def test_before_the_head_has_come_no_more_is_asked_for_than_the_link_holds(
    store: MemoryStore, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockmap.replay.stream._UNKNOWN_LINK_BYTES", 600_000)
    monkeypatch.setattr("blockmap.replay.stream._MIN_UNDER_WAY_BYTES", 600_000)
    monkeypatch.setattr("blockmap.replay.plan._MOST_BYTES", 100_000)
    about = bundled(store, root, list(range(BLOCKS)))
    assert about.length > 1_500_000

    class Headless(Watched):
        def get_range(self, key: str, start: int, end: int) -> bytes | memoryview:  # type: ignore[override]
            if key == KEY and not start:
                assert self.gate.wait(30)
            return self.inner.get_range(key, start, end)

    watched = Headless(store)
    watched.gate = threading.Event()
    with opened(watched, root, tmp_path, about) as view:
        try:
            until(lambda: view.replay.bytes > 300_000)
            assert not view.replay.wait_end(0.2)
            assert view.replay.bytes <= 600_000
        finally:
            watched.gate.set()
        assert view.replay.wait_end(60)
        assert read_blocks(view, 0, BLOCKS) == expected(0, BLOCKS)


def test_a_stream_goes_on_when_the_store_is_back(store: MemoryStore, root: Root, tmp_path: Path) -> None:
    store.create(keys.FORMAT, [b"{}"])  # what a store that was away is asked for
    about = bundled(store, root, list(range(BLOCKS)))

    class Leaving(Watched):
        def get_range(self, key: str, start: int, end: int) -> bytes | memoryview:  # type: ignore[override]
            if self.down or (key == KEY and start and not self.ranges):
                self.down = True
                raise StoreUnavailable("no answer")
            return self.inner.get_range(key, start, end)

    watched = Leaving(store)
    with opened(watched, root, tmp_path, about) as view:
        until(lambda: view.fetcher.outage.away)
        with pytest.raises(StoreUnavailable):
            read_blocks(view, BLOCKS - 1)
        assert not view.replay.ended
        watched.ranges.append(("", 0, 0))
        watched.down = False
        assert view.replay.wait_end(60)
        assert not view.replay.failed
        assert read_blocks(view, 0, BLOCKS) == expected(0, BLOCKS)
        assert view.replay.bytes == about.length


def test_a_server_that_ends_does_not_wait_for_a_stream_that_stalls(
    store: MemoryStore, root: Root, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    about = bundled(store, root, list(range(BLOCKS)))
    watched = Stalling(store)
    watched.gate = threading.Event()
    try:
        with opened(watched, root, tmp_path, about) as view:
            assert view.replay.wait_nodes()
            began = time.monotonic()
        assert time.monotonic() - began < 2
        assert view.replay.failed == "stopped"
        assert not caplog.records
    finally:
        watched.gate.set()


def test_a_bundle_that_is_stopped_before_its_head_has_come_holds_nobody_up(
    store: MemoryStore, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockmap.replay.replay._EMPTY_SLOTS", -1)
    about = bundled(store, root, list(range(BLOCKS)))
    watched = Watched(store)
    watched.gate.clear()
    cache = Cache(tmp_path, 1 << 30)
    staging = StagingArea(cache)
    replay = Replays(Ranges(watched), cache, staging, Verifier()).begin(about, lambda: root)
    until(lambda: watched.ranges)
    replay.stop()
    watched.gate.set()
    until(lambda: not any(each.name == "replay" for each in threading.enumerate()))
    assert replay.bytes > 0
    piece = Packs.open_bundle(store.get(KEY)[: about.table]).pieces[0]
    assert not replay.wait(piece.chunk, piece.mask)
    assert replay.waited_reads == 0
    replay.close()
    staging.close()
    cache.close()


@pytest.mark.parametrize("cap_bytes", [0, 60 * BLOCK])
def test_a_cache_without_room_ends_a_bundle_or_has_a_part_of_it(
    store: MemoryStore,
    root: Root,
    tmp_path: Path,
    cap_bytes: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("blockmap.cache.staging._MOST_BYTES", 0)
    about = bundled(store, root, list(range(BLOCKS)))
    with opened(store, root, tmp_path, about, cap_bytes=cap_bytes) as view:
        for block in range(0, BLOCKS, 3):
            assert read_blocks(view, block, 2) == expected(block, 2)
        assert view.replay.wait_end(60)
        if not cap_bytes:
            assert "takes nothing" in view.replay.failed
            assert [each.getMessage().count("takes nothing") for each in caplog.records] == [1]


def test_a_start_is_served_though_the_cache_takes_nothing(store: MemoryStore, root: Root, tmp_path: Path) -> None:
    about = bundled(store, root, WANTED)
    with opened(store, root, tmp_path, about, cap_bytes=0) as view:
        assert view.replay.wait_end(60)
        for block in WANTED:
            assert read_blocks(view, block) == expected(block)
        assert not view.replay.failed
        assert view.replay.missed_reads == 0
