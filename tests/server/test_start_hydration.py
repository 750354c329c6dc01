"""What is brought to a start that goes on missing, over links whose estimates stand still."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockmap.errors import StoreUnavailable
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.refs import parse_reference
from blockmap.format.tree import Root
from blockmap.format.version import Version, WriterLayout
from blockmap.origin.link import Link
from blockmap.server.hydration import Hydrations
from blockmap.server.opener import ResolvedStart
from blockmap.server.regions import Regions, regions_of
from blockmap.server.start_hydration import StartHydration
from blockmap.store.memory import MemoryStore
from blockmap.store.repository import Repository
from blockmap.store.resolver import Resolved
from blockmap.store.walk import leaves
from blockmap.volume.leaves import all_chunks
from blockmap.volume.reads import Source
from tests.image.builder import bulk
from tests.volume.building import Watched, publish
from tests.volume.bundled import bundled
from tests.volume.opened import OpenVolume, opened, read_blocks
from tests.waiting import until

BLOCKS = 10_000
DATA = bulk(1, BLOCKS * BLOCK)
READS = 120
FAST, THIN = 125e6, 25e6 / 8
"""Bytes per second: 1 Gbit/s, 25 Mbit/s."""
SMALL_BYTES = 256 << 10
"""A chunk has no more: a range that is larger is one that nobody waits for."""


class FixedLink(Link):
    """What is known of a link, which no request changes."""

    def __init__(self, rtt_s: float, bytes_per_s: float) -> None:
        super().__init__()
        self.rtt_s, self.bytes_per_s = rtt_s, bytes_per_s
        self._rates.extend([bytes_per_s] * 16)

    def note(self, start: float, end: float, count: int) -> None:
        pass


class HeldStore(Watched):
    """Holds up ranges that nobody waits for, as long as the gate is closed."""

    def get_range(self, key: str, start: int, end: int) -> bytes:
        if end - start > SMALL_BYTES:
            return super().get_range(key, start, end)
        self.ranges.append((key, start, end))
        return bytes(self.inner.get_range(key, start, end))


@pytest.fixture(scope="module")
def volume() -> tuple[MemoryStore, Root]:
    store = MemoryStore()
    return store, publish(store, [(0, DATA)], 4 * SPAN)


def keys_of(store: MemoryStore, root: Root) -> list[bytes]:
    return [item.key for _, leaf in leaves(root, Repository(store).packs.nodes) for item in all_chunks(leaf)]


class HydratedVolume:
    """A volume that is open, and its start, which may be hydrated."""

    def __init__(self, view: OpenVolume, unasked: bool) -> None:
        self.view = view
        self.start = view.start
        self.unasked = unasked
        self.hydrations = Hydrations(view.fetcher, unasked)
        layout = WriterLayout(0, 0)
        version = Version(view.root, Root(Digest(bytes(32)), view.root.size), layout)
        resolved = Resolved(parse_reference("a:1"), Digest(bytes(32)), version, view.root)
        self.found = ResolvedStart(resolved, view.start.replay)
        self.keys: list[bytes] = []

    def follow(self) -> None:
        self.hydrations.follow(self.found, self.start)

    @property
    def hydrated_bytes(self) -> int:
        return self.view.fetcher.status()["hydrated_bytes"]

    @property
    def spare_bytes(self) -> int:
        return self.view.fetcher.spare_bytes

    def settle(self) -> None:
        """Waits until all has come that was asked for, and nothing more is asked for."""
        fetcher, misses = self.view.fetcher, self.start.misses
        due = self.unasked and StartHydration(self.start, fetcher).is_due() and self.spare_bytes * 64 >= len(DATA)

        def settled() -> bool:
            if fetcher.prefetcher.under_way_bytes or fetcher.status()["in_flight"]:
                return False
            return not due or self.hydrated_bytes >= 4 * self.spare_bytes * misses.steps or self.is_complete()

        until(settled)

    def is_complete(self) -> bool:
        """Returns True if all of the volume is on the host."""
        fetcher = self.view.fetcher
        return all(fetcher.is_prefetched(key) or fetcher.cache.has_all(key) for key in self.keys)

    def read(self, block: int) -> bool:
        """Reads a block, and checks it; returns True if it waited for the store."""
        buf = bytearray(BLOCK)
        slow = self.view.read(memoryview(buf), block * BLOCK)
        assert buf == DATA[block * BLOCK : (block + 1) * BLOCK]
        return slow is not None and slow.source is Source.FETCHED

    def read_all(self) -> int:
        """Reads blocks here and there, each as if the one before had told where; returns how many round trips were waited for.

        All that was asked for comes within one of these.
        """
        missed = 0
        for block in random.Random(1).sample(range(BLOCKS), READS):
            missed += self.read(block)
            self.settle()
        return missed


@contextmanager
def hydrated(
    store: Watched, root: Root, where: Path, link: Link, unasked: bool = True, **more: object
) -> Iterator[HydratedVolume]:
    with opened(store, root, where, link=link, **more) as view:  # type: ignore[arg-type]
        made = HydratedVolume(view, unasked)
        made.keys = keys_of(store.inner, root)  # type: ignore[arg-type]
        made.follow()
        try:
            yield made
        finally:
            store.gate.set()
            view.fetcher.stop()
            made.hydrations.close()


def test_a_start_of_which_nothing_is_known_waits_for_few_round_trips(
    volume: tuple[MemoryStore, Root], tmp_path: Path
) -> None:
    waited = {}
    for unasked in (False, True):
        store = Watched(volume[0])
        with hydrated(store, volume[1], tmp_path / str(unasked), FixedLink(0.2, FAST), unasked) as view:
            waited[unasked] = view.read_all()
            assert (view.hydrated_bytes > 0) == unasked
    assert waited[True] == 3, "the round trips that it takes to begin"
    assert waited[False] >= 2 * waited[True]


def test_over_a_thin_link_nothing_is_brought(volume: tuple[MemoryStore, Root], tmp_path: Path) -> None:
    asked = {}
    for unasked in (False, True):
        store = Watched(volume[0])
        with hydrated(store, volume[1], tmp_path / str(unasked), FixedLink(0.03, THIN), unasked) as view:
            view.read_all()
            assert view.hydrated_bytes == 0
            asked[unasked] = sorted(store.ranges)
    assert asked[True] == asked[False]


def test_what_would_come_too_late_is_not_brought(volume: tuple[MemoryStore, Root], tmp_path: Path) -> None:
    with hydrated(Watched(volume[0]), volume[1], tmp_path, FixedLink(0.2, THIN)) as view:
        assert 0 < view.spare_bytes * 64 < len(DATA)
        view.read_all()
        assert view.hydrated_bytes == 0


def test_the_cache_is_not_filled_with_what_nobody_read(volume: tuple[MemoryStore, Root], tmp_path: Path) -> None:
    store = Watched(volume[0])
    with hydrated(store, volume[1], tmp_path, FixedLink(0.2, FAST), cap_bytes=len(DATA)) as view:
        for block in random.Random(1).sample(range(BLOCKS), READS):
            view.read(block)
        assert view.hydrated_bytes == 0


def test_it_ends_with_the_misses(volume: tuple[MemoryStore, Root], tmp_path: Path) -> None:
    with hydrated(Watched(volume[0]), volume[1], tmp_path, FixedLink(0.03, FAST)) as view:
        for block in (100, 5_000, 9_000):
            assert view.read(block)
            view.settle()
        earned = 3 * 4 * view.spare_bytes
        assert earned - (2 << 20) < view.hydrated_bytes < earned + (2 << 20) < len(DATA)


def test_who_says_so_gets_what_is_read_and_no_more(volume: tuple[MemoryStore, Root], tmp_path: Path) -> None:
    with hydrated(Watched(volume[0]), volume[1], tmp_path, FixedLink(0.2, FAST)) as view:
        view.hydrations.refuse(view.start.key)
        view.unasked = False
        view.read_all()
        assert view.hydrated_bytes == 0, "a start that is there already"
    with hydrated(Watched(volume[0]), volume[1], tmp_path / "next", FixedLink(0.2, FAST)) as view:
        view.hydrations.refuse(view.start.key)
        view.start.misses.noted = None
        view.follow()
        assert view.start.misses.noted is None
        view.follow()
        view.read_all()
        assert view.hydrated_bytes > 0, "the next start, and not the one after it"


def test_a_reader_does_not_wait_for_what_is_under_way(volume: tuple[MemoryStore, Root], tmp_path: Path) -> None:
    store = HeldStore(volume[0])
    with hydrated(store, volume[1], tmp_path, FixedLink(0.1, FAST)) as view:
        fetcher = view.view.fetcher
        store.gate.clear()
        for block in (100, 5_000, 9_000):
            assert view.read(block)
        until(lambda: fetcher.prefetcher.under_way_bytes > view.spare_bytes - (2 << 20))
        assert fetcher.prefetcher.under_way_bytes <= view.spare_bytes
        held = len(store.ranges)
        for block in (2_500, 7_000):
            assert view.read(block)
        assert fetcher.prefetcher.under_way_bytes <= view.spare_bytes
        assert all(end - start <= SMALL_BYTES for _, start, end in store.ranges[held:][:1]), "demand goes first"
        store.gate.set()
        view.settle()
        assert view.read_all() < READS // 4


def test_damage_is_not_believed(volume: tuple[MemoryStore, Root], tmp_path: Path) -> None:
    store = Watched(volume[0])

    def damage(data: bytes, start: int) -> bytes:
        return data if len(data) <= SMALL_BYTES else bytes(len(data))

    store.damage = damage
    with hydrated(store, volume[1], tmp_path, FixedLink(0.2, FAST)) as view:
        for block in (100, 5_000, 9_000):
            view.read(block)
        until(lambda: view.hydrated_bytes > len(DATA) // 4)
        store.damage = lambda data, start: data
        assert read_blocks(view.view, 0, BLOCKS) == DATA
        assert view.view.fetcher.status()["damaged"] > 0


def test_a_store_that_goes_away_ends_it_and_what_came_is_served(
    volume: tuple[MemoryStore, Root], tmp_path: Path
) -> None:
    store = Watched(volume[0])
    with hydrated(store, volume[1], tmp_path, FixedLink(0.03, FAST)) as view:
        for block in (100, 5_000, 9_000):
            view.read(block)
            view.settle()
        store.down = True
        failed, before = 0, 0
        for block in random.Random(2).sample(range(BLOCKS), READS):
            try:
                view.read(block)
            except StoreUnavailable:
                failed += 1
                if failed == 1:
                    before = view.view.fetcher.status()["hydrated_reads"]
        assert failed
        assert view.view.fetcher.status()["hydrated_reads"] > before + READS // 4


def test_a_server_that_ends_meanwhile_leaves_nothing_wrong(volume: tuple[MemoryStore, Root], tmp_path: Path) -> None:
    store = HeldStore(volume[0])
    with hydrated(store, volume[1], tmp_path, FixedLink(0.2, FAST)) as view:
        store.gate.clear()
        for block in (100, 5_000, 9_000):
            view.read(block)
        until(lambda: view.view.fetcher.prefetcher.under_way_bytes > 0)
    with opened(store, volume[1], tmp_path) as again:
        assert read_blocks(again, 0, BLOCKS) == DATA


def test_a_bundle_that_no_longer_fits_is_made_up_for(volume: tuple[MemoryStore, Root], tmp_path: Path) -> None:
    store = Watched(volume[0])
    about = bundled(store, volume[1], range(0, 300, 3))
    with hydrated(store, volume[1], tmp_path, FixedLink(0.2, FAST), about=about) as view:
        until(lambda: view.view.replay.ended)
        for block in range(0, 300, 3):
            view.read(block)
        for block in (5_000, 6_000, 9_000):
            assert view.read(block)
        view.settle()
        assert view.hydrated_bytes == 0, "it has nearly all"
        missed = view.read_all()
        assert view.hydrated_bytes > 0
        assert missed < READS // 8


def test_regions_are_all_of_a_volume_and_the_nearest_come_first(volume: tuple[MemoryStore, Root]) -> None:
    found = [
        region
        for span, leaf in leaves(volume[1], Repository(volume[0]).packs.nodes)
        for region in regions_of(span, leaf)
    ]
    chunks = [item.key for region in found for item in region.chunks()]
    assert len(chunks) == len(set(chunks))
    assert sum(region.stored for region in found) >= len(DATA)
    regions = Regions(found)
    order = []
    while (region := regions.take_nearest([7_000])) is not None:
        order.append(region)
    assert regions.stored == 0
    assert sorted(order, key=lambda region: region.block) == found
    away = [abs(region.block - 7_000) for region in order]
    assert away == sorted(away)
