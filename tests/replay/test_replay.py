"""Bundles: what is read of them, when, and by whom."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from blockmap.cache.staging import StagingArea
from blockmap.format import BLOCK
from blockmap.format.bundle import Piece
from blockmap.format.chunker import MAX_BLOCKS, SPAN
from blockmap.format.tree import Root
from blockmap.store.memory import MemoryStore
from blockmap.store.packs import Packs
from tests.volume.building import Watched, publish
from tests.volume.bundled import BLOCKS, DATA, FAR, KEY, SIZE, WANTED, asked, bundled, expected
from tests.volume.opened import opened, read_blocks
from tests.waiting import until


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def root(store: MemoryStore) -> Root:
    return publish(store, [(0, DATA), (SPAN, FAR)], SIZE)


def test_what_a_bundle_has_is_read_without_any_other_request(store: MemoryStore, root: Root, tmp_path: Path) -> None:
    about = bundled(store, root, WANTED)
    watched = Watched(store)
    with opened(watched, root, tmp_path, about) as view:
        assert view.replay.wait_nodes()
        assert view.replay.number == 3
        for block in WANTED:
            assert read_blocks(view, block) == expected(block)
        assert view.replay.wait_end(30)
        assert set(asked(watched)) == {"bundles"}
        assert sum(end - start for _, start, end in watched.ranges) == about.length, "each byte once"
        assert view.replay.status()["missed_reads"] == 0


def test_a_chunk_that_comes_in_two_parts_is_read_as_one(store: MemoryStore, root: Root, tmp_path: Path) -> None:
    wanted, besides = [5, 6, 7, *range(100, 900, 2)], [4, 8, 9]
    watched = Watched(store)
    with opened(watched, root, tmp_path, bundled(store, root, wanted, ported=True, besides=besides)) as view:
        assert view.replay.wait_nodes()
        assert read_blocks(view, 8) == expected(8)
        assert read_blocks(view, 4, 6) == expected(4, 6)
        assert view.replay.wait_end(30)
        view.fetcher.flush()
        assert read_blocks(view, 4, 6) == expected(4, 6)
        assert set(asked(watched)) == {"bundles"}
        assert view.replay.status()["missed_reads"] == 0


def test_what_may_be_read_besides_is_opened_by_who_reads_it_or_when_the_start_is_over(
    store: MemoryStore, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockmap.replay.frames._REST_S", 1000.0)
    about = bundled(store, root, range(100), ported=True, besides=range(100, 400))
    with opened(store, root, tmp_path, about) as view:
        view.replay.wait_nodes()
        until(lambda: view.replay.bytes == about.length)
        assert read_blocks(view, 99) == expected(99)
        before = view.replay.chunks
        assert not view.replay.ended
        assert read_blocks(view, 300) == expected(300)
        assert before < view.replay.chunks < before + 10
        assert view.replay.status()["missed_reads"] == 0
        assert all(read_blocks(view, block) == expected(block) for block in range(400))
        assert view.replay.status()["missed_reads"] == 0
    monkeypatch.setattr("blockmap.replay.frames._REST_S", 0.01)
    with opened(store, root, tmp_path / "other", about) as view:
        assert view.replay.wait_end(30)
        assert all(read_blocks(view, block) == expected(block) for block in range(400))


def test_what_a_bundle_lacks_is_fetched_and_nothing_beside_it(store: MemoryStore, root: Root, tmp_path: Path) -> None:
    about = bundled(store, root, WANTED)
    watched = Watched(store)
    with opened(watched, root, tmp_path, about) as view:
        assert view.replay.wait_nodes()
        assert read_blocks(view, 8) == expected(8), "the chunk is there in part, this block is not"
        view.fetcher.flush()
        assert read_blocks(view, 4, 6) == expected(4, 6)
        assert read_blocks(view, 600) == expected(600)
        assert asked(watched).count("packs") == 2
        assert view.replay.status()["missed_reads"] == 2
        for block in range(BLOCKS):  # with so many misses the profile is of little use: readers get neighbours again
            assert read_blocks(view, block) == expected(block)


def test_what_a_ported_bundle_lacks_is_fetched_with_neighbours(store: MemoryStore, root: Root, tmp_path: Path) -> None:
    about = bundled(store, root, [0, 1], KEY, ported=True)
    with opened(store, root, tmp_path, about) as view:
        assert view.replay.wait_end(60)
        assert read_blocks(view, 300) == expected(300)
        own = view.cache
        until(lambda: own.status()["bytes"] > 3 * 16 * BLOCK)
        assert view.replay.missed_reads == 1


def test_what_is_read_of_a_bundle_is_not_read_ahead_of_but_what_it_lacks_is(
    store: MemoryStore, root: Root, tmp_path: Path
) -> None:
    about = bundled(store, root, range(300), KEY, ported=True)
    with opened(store, root, tmp_path, about) as view:
        assert view.replay.wait_end(60)
        assert read_blocks(view, 800) == expected(800), "from now on misses bring more than was asked for"
        wanted: list[object] = []
        view.fetcher.want = wanted.append  # type: ignore[method-assign, assignment]

        def read_on(first: int, end: int) -> None:
            for block in range(first, end, 8):
                assert read_blocks(view, block, 8) == expected(block, 8)

        read_on(0, 296)
        assert not wanted
        read_on(400, 696)
        assert wanted


def test_the_head_is_kept_and_what_is_at_hand_is_left_out(store: MemoryStore, root: Root, tmp_path: Path) -> None:
    about = bundled(store, root, list(range(BLOCKS)))
    with opened(store, root, tmp_path, about) as view:
        assert view.replay.wait_end(60)
        assert not view.replay.failed
    watched = Watched(store)
    with opened(watched, root, tmp_path, about) as view:
        assert view.replay.wait_end(60)
        assert watched.ranges == []
        assert view.replay.head is not None
        for piece in view.replay.head.pieces[:10]:
            view.cache.discard(view.cache.lookup(piece.chunk))
    with opened(watched, root, tmp_path, about) as view:
        assert view.replay.wait_end(60)
        assert set(asked(watched)) == {"bundles"}
        assert sum(end - start for _, start, end in watched.ranges) < about.length // 2
        assert read_blocks(view, 0, BLOCKS) == expected(0, BLOCKS)
        assert set(asked(watched)) == {"bundles"}


def test_a_reader_waits_for_what_is_under_way_and_fetches_what_is_not(
    store: MemoryStore, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("_MIN_UNDER_WAY_BYTES", "_UNKNOWN_LINK_BYTES"):  # one range after the other
        monkeypatch.setattr(f"blockmap.replay.stream.{limit}", 0)
    about = bundled(store, root, list(range(BLOCKS)))
    held: list[int] = []

    class Held(Watched):
        def get_range(self, key: str, start: int, end: int) -> bytes | memoryview:  # type: ignore[override]
            if key == KEY and start:
                held.append(start)
                assert self.gate.wait(30)
            return self.inner.get_range(key, start, end)

    watched = Held(store)
    watched.gate.clear()
    with opened(watched, root, tmp_path, about) as view:
        try:
            assert view.replay.wait_nodes()
            until(lambda: held)
            assert read_blocks(view, BLOCKS - 1) == expected(BLOCKS - 1), "it did not wait"
            assert (view.replay.bypassed_reads, view.replay.missed_reads) == (1, 0)
        finally:
            watched.gate.set()
        assert view.replay.wait_end(60)
        assert read_blocks(view, 0, BLOCKS) == expected(0, BLOCKS)


def test_what_has_landed_keeps_no_range_in_memory(
    store: MemoryStore, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = bundled(store, root, list(range(BLOCKS)))  # of bytes that do not compress
    kept: list[int] = []
    put = StagingArea.put

    def noted(area: StagingArea, piece: Piece, data: memoryview) -> bool:
        kept.append(len(data.obj))  # type: ignore[arg-type]
        return put(area, piece, data)

    monkeypatch.setattr(StagingArea, "put", noted)
    with opened(store, root, tmp_path, about) as view:
        assert view.replay.wait_end(60)
    assert len(kept) > 20
    assert max(kept) <= MAX_BLOCKS * BLOCK


def test_what_is_not_in_the_cache_yet_is_at_hand_for_other_bundles(
    store: MemoryStore, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockmap.replay.replay._EMPTY_SLOTS", 16)
    about = bundled(store, root, list(range(BLOCKS)))
    other = bundled(store, root, list(range(BLOCKS // 2)), KEY[:-1] + "4")
    with opened(store, root, tmp_path, about) as view:
        assert view.replay.wait_end(60)
        assert view.cache.status()["slots"] < 10, "nodes and heads"
        second = view.begin(other)
        assert second.wait_end(60)
        assert not second.failed
        assert second.bytes < other.table + (300 << 10)
        assert second.chunks == 0


def test_what_was_brought_in_part_stays_so_whatever_happens_to_the_cache(
    store: MemoryStore, root: Root, tmp_path: Path
) -> None:
    about = bundled(store, root, list(range(0, BLOCKS, 3)))
    chunks = [piece.chunk for piece in Packs.open_bundle(store.get(KEY)[: about.table]).pieces]
    chosen = random.Random(1)
    for cap_bytes in (1 << 30, 1 << 30, 500 * BLOCK, 200 * BLOCK, 1 << 30):  # each time the server starts again
        with opened(store, root, tmp_path, about, cap_bytes=cap_bytes) as view:
            for _ in range(60):
                block = chosen.randrange(BLOCKS - 8)
                assert read_blocks(view, block, 8) == expected(block, 8)
                if chosen.random() < 0.1:
                    view.want(block * BLOCK, BLOCK)
                if chosen.random() < 0.05:
                    name = chosen.choice(chunks)
                    view.cache.discard(view.cache.lookup(name))
            view.cache.scrub(1 << 30)
            assert view.cache.status()["damaged"] == 0


@pytest.mark.parametrize("step", [1, 3])
def test_what_was_brought_in_part_is_read_by_the_hit_path(
    store: MemoryStore, root: Root, tmp_path: Path, step: int
) -> None:
    wanted = list(range(0, BLOCKS, step))
    with opened(store, root, tmp_path, bundled(store, root, wanted)) as view:
        assert view.replay.wait_end(60)
        view.fetcher.flush()
        buf = memoryview(bytearray(BLOCK))
        for _ in range(2):
            slow = 0
            for block in wanted:
                slow += view.read(buf, block * BLOCK) is not None
                assert buf == expected(block)
        assert slow == 0
        for block in range(0, BLOCKS - 4, 3):  # what is not held is fetched, and then read by the hit path too
            assert read_blocks(view, block, 4) == expected(block, 4)
        view.fetcher.flush()
        for block in chosen_blocks():
            assert read_blocks(view, block) == expected(block)
        view.cache.clear()
        for block in wanted[::5]:
            assert read_blocks(view, block) == expected(block)


def chosen_blocks() -> list[int]:
    return random.Random(1).choices(range(BLOCKS), k=500)


def test_counters_of_bundles_only_grow(store: MemoryStore, root: Root, tmp_path: Path) -> None:
    about = bundled(store, root, WANTED)
    with opened(store, root, tmp_path, about) as view:
        assert view.replay.wait_end(30)
        came = view.replays.status()["bundle_bytes"]
        for number in range(70):
            other = replace(about, key=KEY[:-3] + f"{number + 100}")
            assert view.begin(other).wait_end(30)
        status = view.replays.status()
        assert (status["bundles"], status["bundles_failed"], status["bundle_bytes"]) == (71, 70, came)
        assert status["bundles_running"] == 0
