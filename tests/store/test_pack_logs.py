"""The logs about packs, and reading through them: the newest place that serves, a few steps, nothing that is not verified."""

from dataclasses import replace

import pytest

from blockmap.format import BLOCK, keys
from blockmap.format.digest import Digest, block_digests, chunk_digest
from blockmap.format.node import Inner
from blockmap.format.pack import PackKind, seal
from blockmap.format.pack_log import encode_damaged
from blockmap.format.placement import Placement
from blockmap.store.memory import MemoryStore
from blockmap.store.pack_logs import MovedLogs, damage_of, read_damage, record_damage, record_moved
from blockmap.store.packs import Packs, Sealer, pack_key
from blockmap.store.plan import chunk_at
from blockmap.store.repository import Repository
from blockmap.store.walk import nodes
from tests.image.builder import bulk
from tests.store.faulty import Faulty
from tests.volume.building import publish

DATA = bulk(1, 3 * BLOCK)
NAME = chunk_digest(block_digests(memoryview(DATA)))
GONE = [Digest(bytes([at]) * 32) for at in range(9)]


class Asked(Faulty):
    """Notes the keys of records that are read."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.read: list[str] = []

    def get(self, key: str, *most: int) -> bytes:
        self.read.append(key)
        return super().get(key, *most)


def lost(pack: Digest) -> Placement:
    return Placement(pack, 0, 100, 3 * BLOCK, 3 * BLOCK)


def stored(store: MemoryStore, salt: int, data: bytes = DATA) -> Placement:
    """Stores a pack with a chunk that is said to be DATA."""
    pack = seal(PackKind.CHUNKS, Sealer().frames([(NAME, data)]), bytes([salt]) * 16)
    store.create(pack_key(pack.name), pack.parts)
    return pack.placements[0]


def readable(store: MemoryStore, place: Placement) -> bool:
    found = Repository(store).packs.chunks([chunk_at(NAME, place)])[NAME]
    assert found == DATA or isinstance(found, Exception)
    return found == DATA


def test_what_is_gone_is_read_where_it_was_stored_again() -> None:
    store = MemoryStore()
    place = stored(store, 1)
    packs = Repository(store).packs
    item = chunk_at(NAME, lost(GONE[0]))
    assert isinstance(packs.chunks([item])[NAME], Exception)
    record_moved(store, GONE[0], {NAME: place})
    assert packs.chunks([item])[NAME] == DATA, "by a reader that looked before it was stored again"
    assert packs.chunk(NAME, lost(GONE[0])) == DATA


@pytest.mark.parametrize(("steps", "served"), [(1, True), (2, True), (4, True), (5, False)])
def test_a_place_may_have_moved_itself(steps: int, served: bool) -> None:
    store = MemoryStore()
    for at in range(steps - 1):
        record_moved(store, GONE[at], {NAME: lost(GONE[at + 1])})
    record_moved(store, GONE[steps - 1], {NAME: stored(store, 1)})
    assert readable(store, lost(GONE[0])) is served


def test_logs_that_lead_in_a_circle_end() -> None:
    store = Asked(MemoryStore())
    for at in range(3):
        record_moved(store, GONE[at], {NAME: lost(GONE[(at + 1) % 3])})
    assert not readable(store, lost(GONE[0]))  # type: ignore[arg-type]
    assert len(store.read) < 50


def test_the_newest_place_that_verifies_serves() -> None:
    store = MemoryStore()
    old, wrong = stored(store, 1), stored(store, 2, bulk(2, 3 * BLOCK))
    record_moved(store, GONE[0], {NAME: old})
    record_moved(store, GONE[0], {NAME: wrong})
    record_moved(store, GONE[0], {NAME: lost(GONE[5])})
    store.create(keys.moved(GONE[0], 4), [b"no entry"])
    assert readable(store, lost(GONE[0]))
    new = stored(store, 3)
    record_moved(store, GONE[0], {NAME: new})
    assert store.exists(keys.moved(GONE[0], 5))
    assert MovedLogs(store).follow(NAME, GONE[0], lambda place: place) == new


def test_a_log_that_was_read_is_not_read_again_while_it_serves() -> None:
    store = Asked(MemoryStore())
    record_moved(store, GONE[0], {NAME: stored(store.inner, 1)})  # type: ignore[arg-type]
    packs = Repository(store).packs
    packs.chunk(NAME, lost(GONE[0]))
    store.read.clear()
    packs.chunk(NAME, lost(GONE[0]))
    assert store.read == []


def test_memory_is_bounded_by_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockmap.store.pack_logs._PLACES_IN_MEMORY", 100)
    store = MemoryStore()
    for pack in GONE:
        for at in range(10):
            record_moved(store, pack, {Digest(bytes([at, n]) * 16): lost(pack) for n in range(30)})
    logs = MovedLogs(store)
    for pack in GONE:
        assert logs.follow(NAME, pack, lambda place: place) is None
        assert logs.follow(Digest(bytes([0, 7]) * 16), pack, lambda place: place) == lost(pack)
        assert sum(len(entry) for _, entries in logs._read.values() for entry in entries) <= 130


def test_what_is_damaged_in_place_is_read_elsewhere() -> None:
    store = MemoryStore()
    bad, good = stored(store, 1, bulk(2, 3 * BLOCK)), stored(store, 2)
    short = good._replace(stored=good.stored + 1)
    for place in (bad, short):
        assert not readable(store, place)
    record_moved(store, bad.pack, {NAME: good})
    assert readable(store, bad)


def test_a_node_that_moved_says_where_its_children_are() -> None:
    """In its own pack, children are placed relative to it."""
    store = MemoryStore()
    root = publish(store, [(0, bulk(1, 10 * BLOCK)), (4096, bulk(2, 10 * BLOCK))], 2 * 4096)
    assert root.placement is not None
    gone = root.placement._replace(pack=GONE[0])
    record_moved(store, GONE[0], {root.digest: root.placement})
    moved = replace(root, placement=gone)
    frames: list[bytes] = []
    packs = Repository(store).packs
    found = [node for _, node in nodes(moved, lambda refs: packs.nodes(refs, lambda _, frame: frames.append(frame)))]
    assert len(found) == 3
    held = Packs(lambda _, start, end: frames[0])
    (again,) = held.nodes([(root.digest, gone._replace(codec=0, stored=len(frames[0]), raw=len(frames[0])))])
    assert isinstance(again, Inner)
    assert all(place is not None and place.pack == root.placement.pack for place in again.placements)


def test_damage_is_recorded_once() -> None:
    store = MemoryStore()
    record_damage(store, GONE[0], [NAME])
    record_damage(store, GONE[0], [NAME])
    record_damage(store, GONE[0], [GONE[3], NAME])
    record_damage(store, GONE[1], [NAME])
    assert len(store.list("damaged/")) == 3
    assert read_damage(store) == {GONE[0]: {NAME, GONE[3]}, GONE[1]: {NAME}}


def test_damage_of_a_whole_pack_and_entries_that_are_none() -> None:
    store = MemoryStore()
    store.create(keys.damaged(GONE[0], 1), [b"no entry"])
    store.create(keys.damaged(GONE[0], 2), [encode_damaged(GONE[0], [NAME], "n")])
    store.create("damaged/what", [b""])
    assert damage_of(store, GONE[0]) == {NAME}
    store.create(keys.damaged(GONE[0], 3), [encode_damaged(GONE[0], None, "n")])
    assert read_damage(store) == {GONE[0]: None}
    record_damage(store, GONE[0], [GONE[1]])
    assert len(store.list("damaged/")) == 4, "all of it is damaged already"


def test_two_writers_of_a_log_lose_nothing() -> None:
    store = Faulty(MemoryStore())
    store.before_create = lambda: record_moved(store.inner, GONE[0], {NAME: lost(GONE[1])})
    record_moved(store, GONE[0], {GONE[7]: lost(GONE[2])})
    assert len(store.list("moved/")) == 2
    found = [MovedLogs(store).follow(name, GONE[0], lambda place: place.pack) for name in (NAME, GONE[7])]
    assert found == [GONE[1], GONE[2]]
