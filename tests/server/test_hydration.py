"""Bringing all of a volume, so that the host can do without the store."""

from pathlib import Path

from blockmap.format.chunker import SPAN
from blockmap.server.hydration import Hydration
from blockmap.store.memory import MemoryStore
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves
from tests.image.builder import bulk
from tests.volume.building import Watched, publish
from tests.volume.bundled import BLOCKS, DATA, FAR, SIZE, expected
from tests.volume.opened import opened, read_blocks
from tests.waiting import until


def test_a_volume_that_was_brought_is_read_without_the_store(tmp_path: Path) -> None:
    store = Watched(MemoryStore())
    root = publish(store, [(0, DATA), (SPAN, FAR)], SIZE)
    with opened(store, root, tmp_path) as view:
        cache, fetcher = view.cache, view.fetcher
        _, leaf = next(iter(leaves(root, Repository(store).packs.nodes)))
        part = bulk(1, BLOCKS * 4096)[: 4096 * int(leaf.blocks[0])]
        cache.put(leaf.chunks[0], part, 1)  # held in part, and completed
        hydration = Hydration("a@sha256:0", root, fetcher)
        until(lambda: hydration.ended)
        assert hydration.status() == {"export": "a@sha256:0", "bytes": hydration.done_bytes, "state": "complete"}
        fetcher.flush()
        store.down = True
        assert read_blocks(view, 0, BLOCKS) == expected(0, BLOCKS)
        assert read_blocks(view, SPAN, 30) == expected(SPAN, 30)
        again = Hydration("a@sha256:0", root, fetcher)
        until(lambda: again.ended)
        assert again.ended == "complete", "nothing was left to ask for"


def test_a_store_that_goes_away_ends_it_and_is_said(tmp_path: Path) -> None:
    store = Watched(MemoryStore())
    root = publish(store, [(0, DATA)], SPAN)
    with opened(store, root, tmp_path) as view:
        fetcher = view.fetcher
        store.down = True
        hydration = Hydration("a@sha256:0", root, fetcher)
        until(lambda: fetcher.outage.away)
        fetcher.stop()
        hydration.stop()
        assert hydration.ended.startswith("failed")
