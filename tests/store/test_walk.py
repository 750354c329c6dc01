"""Walks: every node once, level by level in few requests; differences of trees of any heights."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from blockmap.errors import BlockmapError, Corrupt
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.digest import ABSENT
from blockmap.format.extent import Extent
from blockmap.format.node import Inner, Leaf, Node
from blockmap.format.tree import Root, build, coverage, height, rewrite
from blockmap.store import walk
from blockmap.store.memory import MemoryStore
from blockmap.store.packs import NodeRef
from blockmap.store.repository import Repository
from blockmap.store.walk import Spot, diff, leaves, nodes, visit
from tests.format.trees import CHUNKS, PLACES, SIZES, Nodes, maps, spans
from tests.image.builder import bulk
from tests.volume.building import Watched, publish

thorough = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
sizes = st.sampled_from(SIZES)


def stored(extents: list[Extent], size: int, kept: Nodes | None = None) -> tuple[Nodes, Root]:
    kept = kept or Nodes()
    return kept, kept.store(build(extents, size, PLACES))


@given(sizes.flatmap(lambda size: st.tuples(st.just(size), maps(size, with_zeros=False))))
def test_every_node_comes_once_parents_first_and_a_level_at_a_time(case: tuple[int, list[Extent]]) -> None:
    size, extents = case
    kept, root = stored(extents, size)
    found = [(span * SPAN, node.digest, node.level) for span, node in nodes(root, kept.load_many)]
    expected = [(start, name, level) for start, _, name, level in spans(root, kept)]
    assert found == sorted(expected, key=lambda own: (-own[2], own[0]))
    assert kept.requests == (0 if root.digest == ABSENT else root.level + 1)
    starts = [start for start, _, level in found if level == 0]
    assert [span * SPAN for span, _ in leaves(root, kept.load_many)] == starts


def test_a_level_is_loaded_in_pieces_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_AT_ONCE", 4)
    kept, root = stored([Extent(span * SPAN, 1, *CHUNKS[span % 24], 0) for span in range(30)], 30 * SPAN)
    other = kept.store(build([Extent(9, 1, *CHUNKS[3], 0)], 30 * SPAN, PLACES))
    kept.requests = 0
    assert len(list(leaves(root, kept.load_many))) == 30
    assert kept.requests == 1 + 8
    assert [span for span, _, _ in diff(root, other, kept.load_many)] == list(range(30))


def test_what_cannot_be_read_is_left_out_with_all_below() -> None:
    size = 3 * coverage(1)
    kept, root = stored([Extent(at * coverage(1) // 2, 1, *CHUNKS[at], 0) for at in range(6)], size)
    second = next(node for span, node in nodes(root, kept.load_many) if node.level == 1 and span)

    def load(refs: Sequence[NodeRef]) -> list[Node | BlockmapError]:
        return [Corrupt("damaged") if name == second.digest else kept.load(name, place) for name, place in refs]

    found = list(visit(root, load))
    assert [span for span, own in found if isinstance(own, Corrupt)] == [256]
    assert [span for span, own in found if isinstance(own, Leaf)] == [0, 128, 512, 640]
    for walked in (nodes(root, load), leaves(root, load), diff(root, Root(ABSENT, size), load)):
        with pytest.raises(Corrupt, match="damaged"):
            list(walked)


def test_a_walk_goes_where_it_is_told() -> None:
    size = 3 * coverage(1)
    kept, root = stored([Extent(at * coverage(1) // 2, 1, *CHUNKS[at], 0) for at in range(6)], size)
    kept.loads.clear()

    def last(level: int, row: list[Spot]) -> list[Spot]:
        assert all(spot.span % 256**level == 0 for spot in row)
        return row[: -3 if level == 0 else None : -1]

    assert [span for span, _ in leaves(root, kept.load_many, last)] == [128, 0]
    assert len(kept.loads) == 1 + 3 + 2


def test_nodes_of_the_wrong_level_are_refused() -> None:
    draft = build([Extent(0, 1, *CHUNKS[0], 0), Extent(SPAN, 1, *CHUNKS[1], 0)], 3 * SPAN, PLACES)
    top = Inner(1, [0], [draft.root.digest], [PLACES[CHUNKS[0][0]]])
    root = Root(top.digest, 3 * SPAN, PLACES[CHUNKS[0][0]])

    def load(refs: Sequence[NodeRef]) -> list[Node]:
        return [{**draft.nodes, top.digest: top}[name] for name, _ in refs]

    for walked in (nodes(root, load), leaves(root, load), diff(root, Root(ABSENT, 3 * SPAN), load)):
        with pytest.raises(Corrupt, match="level 1 where 0 is expected"):
            list(walked)


# --- differences


@thorough
@given(st.data())
def test_diff_yields_what_differs_and_reads_nothing_else(data: st.DataObject) -> None:
    size = data.draw(sizes)
    base = data.draw(maps(size, with_zeros=False))
    kept, left = stored(base, size)
    right = kept.store(rewrite(left, data.draw(maps(size, most=3)), size, kept.load, PLACES))
    if data.draw(st.booleans()):
        left, right = right, left
    sides = [{(start, level): name for start, _, name, level in spans(root, kept)} for root in (left, right)]
    kept.loads.clear()
    kept.requests = 0
    found = list(diff(left, right, kept.load_many))
    differing = {spot for spot in {*sides[0], *sides[1]} if sides[0].get(spot) != sides[1].get(spot)}
    assert [span * SPAN for span, _, _ in found] == sorted(start for start, level in differing if level == 0)
    for span, one, two in found:
        for side, leaf in zip(sides, (one, two), strict=True):
            assert (leaf.digest if leaf else None) == side.get((span * SPAN, 0))
    loadable = [side[spot] for side in sides for spot in differing if spot in side]
    assert sorted(kept.loads) == sorted(loadable)
    assert kept.requests == len({level for _, level in differing}), "one for each level"


@thorough
@given(st.data())
def test_diff_of_two_heights_is_that_of_leaf_by_leaf(data: st.DataObject) -> None:
    """A volume that grew, or another one: the same spans in both orders, in at most one request for each level."""
    small = data.draw(sizes)
    large = data.draw(sizes.filter(lambda size: size > small))
    base = data.draw(maps(small, with_zeros=False))
    kept, left = stored(base, small)
    if data.draw(st.booleans()):
        right = kept.store(rewrite(left, data.draw(maps(large, most=4)), large, kept.load, PLACES))
    else:
        _, right = stored(data.draw(maps(large, with_zeros=False)), large, kept)
    for one, two in ((left, right), (right, left)):
        sides = [{span: leaf.digest for span, leaf in leaves(root, kept.load_many)} for root in (one, two)]
        differing = sorted({span for span, _ in sides[0].items() ^ sides[1].items()})
        kept.requests = 0
        found = list(diff(one, two, kept.load_many))
        assert kept.requests <= height(large) + 1
        assert [span for span, _, _ in found] == differing
        for span, *both in found:
            assert [leaf and leaf.digest for leaf in both] == [side.get(span) for side in sides]
        event(f"heights {one.level} and {two.level}, {'some' if found else 'no'} differences")


def test_a_volume_that_only_grew_differs_nowhere_and_is_not_read() -> None:
    kept, left = stored([Extent(at * SPAN, 1, *CHUNKS[at], 0) for at in range(3)], 3 * SPAN)
    right = kept.store(rewrite(left, [], coverage(2), kept.load, PLACES))
    kept.requests = 0
    assert list(diff(left, right, kept.load_many)) == list(diff(right, left, kept.load_many)) == []
    assert kept.requests == 0


# --- from a store


def test_the_nodes_of_a_level_come_in_one_range() -> None:
    store = MemoryStore()
    data = bulk(1, 40 * BLOCK)
    pieces = [(span * SPAN, data) for span in range(20)] + [(coverage(1) + 3 * SPAN, data)]
    root = publish(store, pieces, coverage(2))
    watched = Watched(store)
    found = list(nodes(root, Repository(watched).packs.nodes))
    assert [node.level for _, node in found] == [2, 1, 1] + [0] * 21
    assert len(watched.ranges) == 3
