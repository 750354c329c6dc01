"""Packs: the only place that knows where they lie and how they are coded; damage stays with what is damaged."""

import re
from pathlib import Path

import pytest

import blockmap
from blockmap.errors import Corrupt, NotFound, StoreUnavailable
from blockmap.format import BLOCK, keys
from blockmap.format.digest import Digest
from blockmap.format.pack import PackKind, seal
from blockmap.format.version import NodeRun
from blockmap.store.memory import MemoryStore
from blockmap.store.packs import Packs, Sealer
from blockmap.store.plan import Wanted, chunk_at
from blockmap.store.walk import leaves
from tests.image.builder import bulk
from tests.volume.building import Watched, publish

SIZE = 4096


def test_pack_keys_and_codecs_are_named_in_one_module() -> None:
    top = Path(blockmap.__file__).parents[1]
    named = re.compile(r"keys\.pack\(|\bcodec\.[a-zA-Z]+\(|codec\.(RAW|ZSTD|LEVEL)|import .*\bcodec\b|\.codec import")
    found = {
        str(path.relative_to(top))
        for folder in ("blockmap", "nbdplugin")
        for path in (top / folder).rglob("*.py")
        if named.search(path.read_text())
    }
    assert found == {"blockmap/store/packs.py"}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def chunks(store: MemoryStore) -> list[Wanted]:
    root = publish(store, [(0, bulk(1, 300 * BLOCK))], SIZE)
    return [
        chunk_at(chunk, place)
        for _, leaf in leaves(root, Packs(store.get_range).nodes)
        for chunk, place in zip(leaf.chunks, leaf.placements, strict=True)
        if place is not None
    ]


def test_chunks_that_lie_together_come_in_one_range(store: MemoryStore, chunks: list[Wanted]) -> None:
    watched = Watched(store)
    packs = Packs(watched.get_range)
    found = packs.fetch([*chunks, *chunks])
    assert len(watched.ranges) == 1
    for item in chunks:
        stored = found[item.key]
        assert isinstance(stored, memoryview)
        assert packs.open_chunk(item.name, item.place, stored) == packs.chunk(item.name, item.place)


def test_a_wrong_placement_spoils_no_other(store: MemoryStore, chunks: list[Wanted]) -> None:
    packs, last = Packs(store.get_range), chunks[-1]
    beyond = last.place._replace(stored=last.place.stored + 1)
    gone = last.place._replace(pack=Digest(bytes(32)))
    found = packs.fetch([*chunks[:-1], chunk_at(last.name, beyond)])
    assert isinstance(found.pop(last.key), Corrupt)
    assert all(isinstance(stored, memoryview) for stored in found.values())
    assert isinstance(packs.fetch([chunk_at(last.name, gone)])[last.key], NotFound)


@pytest.mark.parametrize("kind", [StoreUnavailable, NotFound])
def test_a_store_that_is_away_or_lacks_a_pack_is_asked_once(
    chunks: list[Wanted], kind: type[StoreUnavailable | NotFound]
) -> None:
    asked = []

    def read(key: str, start: int, end: int) -> bytes:
        asked.append(key)
        raise kind("away")

    found = Packs(read).fetch(chunks)
    assert len(asked) == 1
    assert all(isinstance(error, kind) for error in found.values())


def test_nodes_come_in_order_with_errors_in_their_places(store: MemoryStore) -> None:
    root = publish(store, [(0, bulk(1, 10 * BLOCK)), (SIZE, bulk(2, 10 * BLOCK))], 2 * SIZE)
    kept: dict[bytes, bytes] = {}
    packs = Packs(store.get_range)
    (top,) = packs.nodes([(root.digest, root.placement)])
    assert not isinstance(top, Exception)
    refs = [*zip(top.references, top.placements, strict=True)]
    refs = [refs[1], (refs[0][0], refs[1][1]), (refs[0][0], None), refs[0], refs[1]]  # type: ignore[list-item]
    found = packs.nodes(refs, lambda item, frame: kept.update({item.name: frame}))
    assert [isinstance(each, Corrupt) for each in found] == [False, True, True, False, False]
    assert "nothing says where" in str(found[2])
    assert found[0] is found[4]
    assert set(kept) == {refs[0][0], refs[3][0]}
    for at in (0, 3):
        place = refs[at][1]
        assert place is not None
        assert packs.run(NodeRun(place.pack, place.offset, place.offset + place.stored)).nbytes == place.stored


def test_frames_are_what_was_sealed() -> None:
    contents = [(Digest(bytes([seed]) * 32), data) for seed, data in enumerate((bulk(1, BLOCK), bytes(BLOCK)))]
    frames = Sealer().frames(contents)
    assert [frame.raw for frame in frames] == [BLOCK, BLOCK]
    assert len(frames[0].data) == BLOCK > len(frames[1].data)
    store, pack = MemoryStore(), seal(PackKind.CHUNKS, frames, bytes(16))
    store.create(keys.pack(pack.name), pack.parts)
    head = Packs(store.get_range).head(pack.name)
    assert head.entries == [(name, place) for (name, _), place in zip(contents, pack.placements, strict=True)]
