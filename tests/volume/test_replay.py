"""Bundles: what is read of them, when, by whom; and that a start works whatever becomes of them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockmap.fetch.cache import Cache
from blockmap.fetch.fetcher import Fetcher
from blockmap.fetch.patience import Patience
from blockmap.format import BLOCK
from blockmap.format import bundle as bundles
from blockmap.format.chunker import SPAN
from blockmap.format.extent import Extent
from blockmap.format.hint import Bundle
from blockmap.format.node import Inner
from blockmap.format.tree import Root, leaves
from blockmap.store.base import Reader
from blockmap.store.memory import MemoryStore
from blockmap.store.repository import Repository, open_node
from blockmap.volume.view import View
from tests.image.builder import bulk
from tests.volume.building import Watched, publish
from tests.waiting import until

KEY = "bundles/" + "0" * 64 + "/default/0000000000000003"
BLOCKS = 900
SIZE = 2 * SPAN
DATA = bulk(1, BLOCKS * BLOCK)
FAR = bulk(2, 30 * BLOCK)
WHOLE = DATA.ljust(SPAN * BLOCK, b"\0") + FAR


def bundled(store: MemoryStore, root: Root, wanted: Sequence[int]) -> Bundle:
    """Stores the bundle of some blocks of a volume."""
    repository = Repository(store)
    extents: list[Extent] = []
    places = {}
    nodes = []
    assert root.placement is not None
    waiting = [(root.digest, root.placement)]
    for name, place in waiting:
        node, frame = open_node(name, place, repository.stored(place))
        nodes.append((name, frame))
        if isinstance(node, Inner):
            waiting += [(c, p) for c, p in zip(node.children, node.placements, strict=True) if p is not None]
    for span, leaf in leaves(root, repository.node):
        extents += leaf.extents(span * SPAN)
        places |= dict(zip(leaf.chunks, leaf.placements, strict=True))
    masks: dict[bytes, int] = {}
    for block in wanted:
        own = next(each for each in extents if each.start <= block < each.end)
        assert own.chunk is not None
        masks[own.chunk] = masks.get(own.chunk, 0) | 1 << (own.first + block - own.start)
    chunks = []
    for name, mask in masks.items():
        place = places[name]  # type: ignore[index]
        assert place is not None
        chunks.append((name, mask, bytes(repository.chunk(name, place))))  # type: ignore[arg-type]
    readings = [bundles.Reading(block, 1, None, 0) for block in wanted]
    parts, table = bundles.encode(nodes, chunks, readings, BLOCKS + 30, bytes(16))  # type: ignore[arg-type]
    store.create(KEY, parts)
    return Bundle("default", KEY, sum(map(len, parts)), table)


@contextmanager
def viewed(store: Reader, root: Root, directory: Path, about: Bundle) -> Iterator[View]:
    cache = Cache(directory, 1 << 30)
    fetcher = Fetcher(Repository(store), cache)
    try:
        view = View("a@sha256:0", root, fetcher, lambda: None, Patience(0))
        view.replay = fetcher.replay(about, lambda: root)
        yield view
    finally:
        fetcher.close()
        cache.close()


def read(view: View, block: int, blocks: int = 1) -> bytes:
    buf = bytearray(b"\xee" * blocks * BLOCK)
    view.read(memoryview(buf), block * BLOCK)
    return bytes(buf)


def expected(block: int, blocks: int = 1) -> bytes:
    return WHOLE[block * BLOCK : (block + blocks) * BLOCK].ljust(blocks * BLOCK, b"\0")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def root(store: MemoryStore) -> Root:
    return publish(store, [(0, DATA), (SPAN, FAR)], SIZE)


def asked(store: Watched) -> list[str]:
    return [key.partition("/")[0] for key, _, _ in store.ranges]


WANTED = [5, 6, 7, 300, 301, 899, 40, SPAN + 3]


def test_what_a_bundle_has_is_read_without_any_other_request(store: MemoryStore, root: Root, tmp_path: Path) -> None:
    about = bundled(store, root, WANTED)
    watched = Watched(store)
    with viewed(watched, root, tmp_path, about) as view:
        assert view.replay is not None
        assert view.replay.wait_nodes()
        assert view.replay.number == 3
        for block in WANTED:
            assert read(view, block) == expected(block)
        assert view.replay.wait_end(30)
        assert set(asked(watched)) == {"bundles"}
        assert sum(end - start for _, start, end in watched.ranges) == about.length, "each byte once"
        assert view.replay.status()["strays"] == 0


def test_what_a_bundle_lacks_is_fetched_and_nothing_beside_it(store: MemoryStore, root: Root, tmp_path: Path) -> None:
    about = bundled(store, root, WANTED)
    watched = Watched(store)
    with viewed(watched, root, tmp_path, about) as view:
        assert view.replay is not None
        assert view.replay.wait_nodes()
        assert read(view, 8) == expected(8), "the chunk is there in part, this block is not"
        view._fetcher.flush()
        assert read(view, 4, 6) == expected(4, 6)
        assert read(view, 600) == expected(600)
        assert asked(watched).count("packs") == 2
        assert view.replay.status()["strays"] == 2
        for block in range(BLOCKS):  # with so many misses the profile is of little use: readers get neighbours again
            assert read(view, block) == expected(block)


def test_the_head_is_kept_and_what_is_at_hand_is_left_out(store: MemoryStore, root: Root, tmp_path: Path) -> None:
    about = bundled(store, root, list(range(BLOCKS)))
    with viewed(store, root, tmp_path, about) as view:
        assert view.replay is not None
        assert view.replay.wait_end(60)
        assert not view.replay.failed
    watched = Watched(store)
    with viewed(watched, root, tmp_path, about) as view:
        assert view.replay is not None
        assert view.replay.wait_end(60)
        assert watched.ranges == []
        assert view.replay.head is not None
        for piece in view.replay.head.pieces[:10]:
            view._cache.discard(view._cache.lookup(piece.chunk))
    with viewed(watched, root, tmp_path, about) as view:
        assert view.replay is not None
        assert view.replay.wait_end(60)
        assert set(asked(watched)) == {"bundles"}
        assert sum(end - start for _, start, end in watched.ranges) < about.length // 2
        assert read(view, 0, BLOCKS) == expected(0, BLOCKS)
        assert set(asked(watched)) == {"bundles"}


def test_a_reader_waits_for_what_is_under_way_and_fetches_what_is_not(
    store: MemoryStore, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("_MIN_UNDER_WAY_BYTES", "_UNKNOWN_LINK_BYTES"):  # one range after the other
        monkeypatch.setattr(f"blockmap.fetch.replay.{limit}", 0)
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
    with viewed(watched, root, tmp_path, about) as view:
        try:
            assert view.replay is not None
            assert view.replay.wait_nodes()
            until(lambda: held)
            assert read(view, BLOCKS - 1) == expected(BLOCKS - 1), "it did not wait"
            assert (view.replay.overtaken, view.replay.strays) == (1, 0)
        finally:
            watched.gate.set()
        assert view.replay.wait_end(60)
        assert read(view, 0, BLOCKS) == expected(0, BLOCKS)


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
    with caplog.at_level(logging.WARNING), viewed(store, root, tmp_path, about) as view:
        assert view.replay is not None
        assert view.replay.wait_nodes() or view.replay.failed
        for block in range(0, BLOCKS, 7):
            assert read(view, block, 5) == expected(block, 5)
        assert view.replay.wait_end(60)
        status = view.replay.status()
        assert status["damaged"] if damage == "frame" else status["failed"]
        assert caplog.text if damage != "frame" else True


def test_a_stream_that_stalls_holds_nobody_up_for_long(
    store: MemoryStore, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockmap.fetch.replay._PATIENCE_S", 0.05)
    about = bundled(store, root, list(range(BLOCKS)))

    class Stalling(Watched):
        def get_range(self, key: str, start: int, end: int) -> bytes | memoryview:  # type: ignore[override]
            if key == KEY and start:
                assert self.gate.wait(30)
            return self.inner.get_range(key, start, end)

    watched = Stalling(store)
    watched.gate.clear()
    with viewed(watched, root, tmp_path, about) as view:
        try:
            assert view.replay is not None
            assert view.replay.wait_nodes()
            assert read(view, 0, BLOCKS) == expected(0, BLOCKS)
            assert view.replay.waited
        finally:
            watched.gate.set()
