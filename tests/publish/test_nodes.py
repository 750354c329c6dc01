"""Nodes in packs, trees with hidden ranges, and the index that the trees of a store are."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN, Parameters
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.extent import Extent
from blockmap.format.hooks import sample
from blockmap.format.node import Inner
from blockmap.format.pack import Pack
from blockmap.format.placement import Placement
from blockmap.format.tree import Draft, Root, build
from blockmap.publish.chunks import ChunkWriter
from blockmap.publish.dedup_index import DedupIndex, StoredTree
from blockmap.publish.nodes import RUN_BYTES, StoredTrees, store_nodes
from blockmap.publish.object_writer import ObjectWriter
from blockmap.publish.stages import Stages
from blockmap.publish.trees import Trees, draft_whole, store_trees
from blockmap.store.memory import MemoryStore
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves, nodes
from tests.image.builder import bulk
from tests.volume.building import model

PLACE = Placement(Digest(b"\7" * 32), 0, 0, BLOCK, BLOCK)


def draft(seed: int, spans: int, of: int = 20, apart: int = 1) -> Draft:
    """A tree of `spans` leaves, each of `of` extents in chunks of its own."""
    chosen = random.Random(seed)
    extents = [
        Extent(span * apart * SPAN + 60 * at, 1, Digest(chosen.randbytes(32)), 1, 0)
        for span in range(spans)
        for at in range(of)
    ]
    return build(extents, max(1, spans * apart) * SPAN, {})


def stored(store: MemoryStore, drafts: list[Draft]) -> StoredTrees:
    return store_nodes(drafts, lambda name: PLACE, ObjectWriter(store).put_pack)


def check_whole(store: MemoryStore, made: Draft, root: Root) -> None:
    """Every node is found from its root through placements alone."""
    found = {node.digest for _, node in nodes(root, Repository(store).packs.nodes)}
    assert found == set(made.nodes)


@pytest.mark.parametrize(("spans", "apart"), [(0, 1), (1, 1), (2, 1), (300, 1), (5, 70_000)])
def test_every_node_is_read_through_its_placement(spans: int, apart: int) -> None:
    store, made = MemoryStore(), draft(1, spans, apart=apart)
    result = stored(store, [made])
    check_whole(store, made, result.roots[0])
    if not spans:
        assert result == StoredTrees([made.root], None, 0, {})


@pytest.mark.parametrize("target", [3_000, 20_000, 200_000])
def test_leaves_beyond_the_first_pack_go_before_it(monkeypatch: pytest.MonkeyPatch, target: int) -> None:
    monkeypatch.setattr("blockmap.publish.nodes.TARGET_BYTES", target)
    store, made, order = MemoryStore(), draft(1, 100, of=30), []

    def put(pack: Pack) -> None:
        order.append(pack.name)
        ObjectWriter(store).put_pack(pack)

    result = store_nodes([made], lambda name: PLACE, put)
    check_whole(store, made, result.roots[0])
    root = result.roots[0].placement
    assert root is not None
    assert len(order) > 1 or target == 200_000
    assert order[-1] == root.pack, "the root's pack comes last: what it refers to is there already"
    assert result.run is not None
    assert result.run.pack == root.pack
    assert result.stored_bytes == sum(len(store.get(key)) for key in store.list("packs/"))


def test_the_run_begins_with_the_root_and_holds_whole_nodes() -> None:
    store, made = MemoryStore(), draft(1, 400, of=60)
    result = stored(store, [made])
    run, root = result.run, result.roots[0].placement
    assert run is not None
    assert root is not None
    assert (run.pack, run.start) == (root.pack, root.offset)
    assert run.end - run.start <= RUN_BYTES
    entries = [place for _, place in Repository(store).packs.head(run.pack).entries]
    assert run.end in {place.offset + place.stored for place in entries}
    inside = [place for place in entries if place.offset + place.stored <= run.end]
    assert inside[0] == root
    assert all(before.offset + before.stored == after.offset for before, after in pairwise(inside))
    order = [
        node.digest for _, node in nodes(result.roots[0], Repository(store).packs.nodes) if not isinstance(node, Inner)
    ]
    packed = [name for name, _ in Repository(store).packs.head(run.pack).entries if name in set(order)]
    assert packed == list(dict.fromkeys(order)), "leaves lie in volume order"


def test_drafts_share_what_they_have_in_common() -> None:
    store, one, two = MemoryStore(), draft(1, 3), draft(1, 3)
    result = stored(store, [one, two])
    assert result.roots[0] == result.roots[1]
    alone = MemoryStore()
    assert stored(alone, [one]).stored_bytes == result.stored_bytes


def test_a_leaf_that_is_stored_is_taken_over_behind_the_run() -> None:
    store, made = MemoryStore(), draft(1, 400, of=60)
    first = stored(store, [made])
    there = {
        name: place
        for key in store.list("packs/")
        for name, place in Repository(store).packs.head(Digest(bytes.fromhex(key[-64:]))).entries
    }
    again = store_nodes([draft(1, 400, of=60)], lambda name: PLACE, ObjectWriter(store).put_pack, there.get)
    check_whole(store, made, again.roots[0])
    assert again.run is not None
    assert again.run.end - again.run.start > RUN_BYTES * 0.9, "an open reads as much in one go as ever"
    assert again.run.end - again.run.start < again.stored_bytes < first.stored_bytes / 2


# --- trees


def knowing(store: MemoryStore, roots: list[Root]) -> DedupIndex:
    repository = Repository(store)
    found = []
    for root in roots:
        sampled = sample((span, leaf.chunks) for span, leaf in leaves(root, repository.packs.nodes))
        found.append(StoredTree([root], sampled))
    return DedupIndex(repository, found, pytest.fail)


def trees(
    store: MemoryStore, pieces: list[tuple[int, bytes]], size: int, hidden: list[tuple[int, int]], known: DedupIndex
) -> Trees:
    put_pack = ObjectWriter(store).put_pack
    with ChunkWriter(put_pack, known.lookup, Parameters(), Stages()) as chunks:
        for block, data in pieces:
            chunks.write(block, data)
        chunks.finish()
        return store_trees(draft_whole(chunks, size, hidden), chunks.table.placement, known, put_pack)


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.integers(0, 2 * SPAN + 300), max_size=12),
    st.sampled_from([0, SPAN - 200, SPAN, 2 * SPAN - 50]),
    st.integers(1, 300),
)
def test_hidden_ranges_are_in_extra_and_the_rest_in_the_volume(edges: set[int], start: int, blocks: int) -> None:
    cuts = sorted(edges)[: len(edges) // 2 * 2]
    hidden = list(zip(cuts[::2], cuts[1::2], strict=True))
    pieces = [(start, bulk(1, blocks * BLOCK)), (start + blocks + 5, bulk(1, blocks * BLOCK))]
    size, store = 3 * SPAN, MemoryStore()
    made = trees(store, pieces, size, hidden, knowing(store, []))
    last = start + 2 * blocks + 5
    whole = model([(block - start, data) for block, data in pieces], 2 * blocks + 5)
    shown, below = bytearray(whole), bytearray(len(whole))
    for first, end in hidden:
        part = slice(max(first - start, 0) * BLOCK, max(min(end, last) - start, 0) * BLOCK)
        below[part] = whole[part]
        shown[part] = bytes(len(whole[part]))
    for root, expected in ((made.root, shown), (made.extra, below)):
        repository = Repository(store)
        assert stored_reader(repository, root)(start * BLOCK, len(whole)) == expected
        data = sum(int(leaf.lengths.sum()) for _, leaf in leaves(root, repository.packs.nodes))
        assert data == sum(bool(expected[at : at + BLOCK].strip(b"\0")) for at in range(0, len(expected), BLOCK))


def test_trees_that_are_known_are_not_stored_again_and_keep_their_own_size() -> None:
    store, pieces = MemoryStore(), [(0, bulk(1, 90 * BLOCK))]
    first = trees(store, pieces, SPAN, [(10, 20)], knowing(store, []))
    known = knowing(store, [first.root, first.extra])
    before = store.list("")
    again = trees(store, pieces, 200, [(10, 20)], known)
    assert store.list("") == before
    assert (again.root.digest, again.extra.digest) == (first.root.digest, first.extra.digest)
    assert (again.root.placement, again.run, again.stored_bytes) == (first.root.placement, None, 0)
    assert (first.root.size, again.root.size, again.extra.size) == (SPAN, 200, 200)


def test_a_known_volume_that_hides_something_else_is_stored() -> None:
    store, pieces = MemoryStore(), [(0, bulk(1, 64 * BLOCK)), (100, bulk(2, 64 * BLOCK))]
    first = trees(store, pieces, SPAN, [(100, 164)], knowing(store, []))
    known = knowing(store, [first.root, first.extra])
    second = trees(store, pieces[:1], SPAN, [], known)
    assert second.root.digest == first.root.digest
    assert second.extra.digest == ABSENT
    assert stored_reader(Repository(store), second.root)(0, 64 * BLOCK) == pieces[0][1]
