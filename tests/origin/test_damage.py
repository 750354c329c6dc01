"""What a reader found damaged is recorded in the store, where that can be written, once and only if it is damaged there."""

import pytest

from blockmap.errors import StoreReadOnly
from blockmap.format import BLOCK, keys
from blockmap.format.chunker import SPAN
from blockmap.origin.damage import DamageRecorder
from blockmap.store.base import Writer
from blockmap.store.memory import MemoryStore
from blockmap.store.pack_logs import read_damage
from blockmap.store.plan import Wanted, chunk_at
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves
from tests.image.builder import bulk
from tests.volume.building import publish


class Refusing(MemoryStore):
    """A store that cannot be written any more."""

    def create(self, key: str, *_: object) -> None:
        raise StoreReadOnly(f"{key} cannot be written")


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    made.create(keys.FORMAT, [b"{}"])
    return made


@pytest.fixture
def chunks(store: MemoryStore) -> list[Wanted]:
    root = publish(store, [(0, bulk(1, 800 * BLOCK))], SPAN)
    _, leaf = next(leaves(root, Repository(store).packs.nodes))
    return [
        chunk_at(name, place) for name, place in zip(leaf.chunks, leaf.placements, strict=True) if place is not None
    ]


def spoil(store: MemoryStore, item: Wanted, how: str) -> None:
    key, place = keys.pack(item.place.pack), item.place
    data = store.get(key)
    store.delete(key)
    if how == "damaged":
        store.create(key, [data[: place.offset], bytes(place.stored), data[item.end :]])
    elif how == "short":
        store.create(key, [data[: item.end - 1]])


def note(store: MemoryStore, items: list[Wanted], writer: Writer | None) -> None:
    """Notes things of a store, and waits until that is recorded."""
    recorder = DamageRecorder(store, writer)
    for item in items:
        recorder.note(item)
    recorder.close()


@pytest.mark.parametrize("how", ["damaged", "short", "gone"])
def test_damage_is_recorded_once(store: MemoryStore, chunks: list[Wanted], how: str) -> None:
    item = chunks[-1]
    spoil(store, item, how)
    note(store, [item, item], store)
    note(store, [item], store)
    assert read_damage(store) == {item.place.pack: {item.name}}
    assert len(store.list("damaged/")) == 1


def test_of_a_pack_with_much_damage_nothing_is_relied_on(store: MemoryStore, chunks: list[Wanted]) -> None:
    assert len(chunks) > 20
    spoil(store, chunks[0], "gone")
    note(store, chunks, store)
    assert read_damage(store) == {chunks[0].place.pack: None}
    assert len(store.list("damaged/")) == 17


def test_what_was_damaged_on_its_way_is_not_recorded(store: MemoryStore, chunks: list[Wanted]) -> None:
    note(store, chunks, store)
    assert not store.list("damaged/")


def test_where_the_store_is_gone_nothing_is_recorded(
    store: MemoryStore, chunks: list[Wanted], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(store, chunks[0], "gone")
    store.delete(keys.FORMAT)
    note(store, chunks[:1], store)
    assert not store.list("damaged/")
    assert "check that it is mounted" in caplog.text


def test_where_the_store_cannot_be_written_damage_is_said(
    store: MemoryStore, chunks: list[Wanted], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(store, chunks[0], "damaged")
    for writer, why in ((None, "where the store can be written"), (Refusing(), "cannot be recorded there")):
        caplog.clear()
        note(store, [chunks[0], chunks[0]], writer)
        (said,) = caplog.messages
        assert chunks[0].place.pack.hex() in said
        assert why in said
    assert not store.list("damaged/")
