"""What lookups find: never a wrong place, whatever hooks say; and what a store's damage costs."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.format import BLOCK, keys
from blockmap.format.chunker import SPAN
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.extent import Extent
from blockmap.format.hooks import HOOK, Hooks, sample
from blockmap.format.node import leaf
from blockmap.format.placement import Placement
from blockmap.format.tree import Root, build
from blockmap.publish.dedup_index import DedupIndex, RecentLeaves, StoredTree
from blockmap.publish.nodes import store_nodes
from blockmap.publish.object_writer import ObjectWriter
from blockmap.store.memory import MemoryStore
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves

Places = dict[Digest, Placement]


def placed(chosen: random.Random) -> Placement:
    return Placement(Digest(chosen.randbytes(32)), 0, chosen.randrange(1 << 20), BLOCK, BLOCK)


def tree(store: MemoryStore, chunks: Sequence[Digest], places: Places, spans: int, each: int) -> StoredTree:
    """A stored tree with `each` of the chunks per span."""
    extents = [
        Extent(at // each * SPAN + at % each * 3, 1, chunk, 1, 0) for at, chunk in enumerate(chunks[: spans * each])
    ]
    draft = build(extents, spans * SPAN, places)
    root = store_nodes([draft], places.get, ObjectWriter(store).put_pack).roots[0]
    return StoredTree([root], hooks_of(store, root))


class MadeUp(MemoryStore):
    """Has packs of any length, since the places of chunks are made up."""

    def size(self, key: str) -> int:
        return 1 << 33


def hooks_of(store: MemoryStore, root: Root) -> Hooks:
    return sample((span, own.chunks) for span, own in leaves(root, Repository(store).packs.nodes))


def some(seed: int, count: int) -> tuple[list[Digest], Places]:
    chosen = random.Random(seed)
    chunks = [Digest(chosen.randbytes(32)) for _ in range(count)]
    return chunks, {chunk: placed(chosen) for chunk in chunks}


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(0, 1 << 32), st.integers(1, 12), st.integers(1, 40))
def test_what_is_found_is_where_that_very_chunk_is(data: st.DataObject, seed: int, spans: int, each: int) -> None:
    store = MadeUp()
    chunks, places = some(seed, 2 * spans * each)
    trees = [tree(store, chunks[start:], places, spans, each) for start in (0, spans * each // 2, spans * each)]
    # Hooks are advice: the prefix of any chunk, at any leaf, must never give a chunk another's place.
    lies = data.draw(st.lists(st.tuples(st.sampled_from(chunks), st.integers(0, spans + 3)), max_size=20))
    rows = sorted({(span, int.from_bytes(chunk[:8], "big")) for chunk, span in lies})
    trees.append(StoredTree(trees[0].roots, np.array([(hook, span) for span, hook in rows], HOOK)))
    known = DedupIndex(Repository(store), trees, lambda _: None)
    strangers, _ = some(seed + 1, 5)
    asked = [*chunks, *strangers]
    for at in range(0, len(asked), 50):
        segment = asked[at : at + 50]
        for chunk, place in zip(segment, known.lookup(segment), strict=True):
            assert place is None or place == places[chunk]


def test_a_tree_that_is_asked_for_in_its_order_is_found_whole() -> None:
    store = MadeUp()
    chunks, places = some(1, 40 * 250)
    known = DedupIndex(Repository(store), [tree(store, chunks, places, 40, 250)], pytest.fail)
    for at in range(0, len(chunks), 1000):
        segment = chunks[at : at + 1000]
        assert known.lookup(segment) == [places[chunk] for chunk in segment]


def test_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockmap.publish.dedup_index.MAX_CHUNKS", 5000)
    store = MadeUp()
    chunks, places = some(1, 60 * 250)
    known = DedupIndex(Repository(store), [tree(store, chunks, places, 60, 250)], pytest.fail)
    for at in range(0, len(chunks), 1000):
        segment = chunks[at : at + 1000]
        found = known.lookup(segment)
        assert len(known) <= 5000
        assert sum(place is not None for place in found) >= 900


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sets(st.integers(0, 30), min_size=1, max_size=8), min_size=1, max_size=30), st.integers(1, 40))
def test_what_is_remembered_is_what_a_leaf_said_last(added: list[set[int]], room: int) -> None:
    recent, last = RecentLeaves(room), {}
    for at, numbers in enumerate(added):
        names = {number: Digest(bytes([number]) * 32) for number in sorted(numbers)}
        places = {name: placed(random.Random(at * 100 + number)) for number, name in names.items()}
        made = leaf([Extent(2 * n, 1, name, 1, 0) for n, name in enumerate(names.values())], 0, places)
        assert made is not None
        recent.add(made.digest, made)
        last.update(places)
        for name in names.values():
            assert recent.placement(name) == places[name], "the leaf that was added now is there, whatever its size"
        for name, place in last.items():
            assert recent.placement(name) in (None, place)
        assert len(recent) <= max(room, len(names))


def spoiled(store: MemoryStore, place: Placement) -> MemoryStore:
    """The same store with the bytes at a placement damaged."""

    class Spoiled(MadeUp):
        def get_range(self, key: str, start: int, end: int) -> bytes:
            data = bytearray(store.get_range(key, start, end))
            if key == keys.pack(place.pack) and start <= place.offset < end:
                data[place.offset - start] ^= 1
            return bytes(data)

    return Spoiled()


def test_a_damaged_leaf_is_said_once_and_another_tree_serves() -> None:
    store = MadeUp()
    chunks, places = some(1, 500)
    both = [tree(store, chunks, places, 2, 250), tree(store, chunks, places, 4, 125)]
    root = both[1].roots[0]
    inner = Repository(store).node(root.digest, root.placement)
    place = inner.placements[0]
    assert place is not None
    warnings: list[str] = []
    known = DedupIndex(Repository(spoiled(store, place)), both, warnings.append)
    assert known.lookup(chunks) == [places[chunk] for chunk in chunks]
    assert len(warnings) <= 1
    assert not known.whole(root)
    assert known.tree(root.digest) is None
    assert known.tree(both[0].roots[0].digest) == both[0].roots[0]
    assert len(warnings) == 1
    assert "damaged" in warnings[0]


def test_a_tree_is_found_in_its_second_place_where_the_first_is_damaged() -> None:
    store = MadeUp()
    chunks, places = some(1, 500)
    one, two = (tree(store, chunks, places, 2, 250).roots[0] for _ in range(2))
    assert one.placement != two.placement
    assert one.placement is not None
    twice = StoredTree([one, two], hooks_of(store, one))
    known = DedupIndex(Repository(spoiled(store, one.placement)), [twice], lambda _: None)
    assert known.lookup(chunks) == [places[chunk] for chunk in chunks]
    assert known.tree(one.digest) == two
    assert known.whole(two)
    assert not known.whole(one)


def test_nothing_is_known_of_an_empty_store() -> None:
    known = DedupIndex(Repository(MemoryStore()), [], pytest.fail)
    chunks, _ = some(1, 10)
    assert known.lookup(chunks) == [None] * 10
    assert known.lookup([]) == []
    assert known.tree(chunks[0]) is None
    assert known.whole(Root(ABSENT, 5))
