"""Trees: they depend on their extents alone, and no node is loaded that an answer does not need."""

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format.chunker import SPAN
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.extent import Extent, coalesce, over, zeros
from blockmap.format.node import Inner, Leaf, Node
from blockmap.format.placement import Placement
from blockmap.format.tree import (
    MAX_BLOCKS,
    Draft,
    Root,
    assemble,
    build,
    coverage,
    cut_at_spans,
    find,
    height,
    rewrite,
)
from blockmap.store.walk import leaves
from tests.format.trees import (
    CHUNKS,
    PLACES,
    SIZES,
    Nodes,
    as_map,
    blocks_of,
    check,
    edges,
    maps,
    place_of,
    spans,
    written,
)

thorough = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
sizes = st.sampled_from(SIZES)


def fill(start: int, end: int, seed: int = 0) -> list[Extent]:
    """Returns extents with data in every block of [start, end), in whole chunks."""
    found = []
    while start < end:
        chunk, blocks = CHUNKS[seed % len(CHUNKS)]
        found.append(Extent(start, min(blocks, end - start), chunk, blocks, 0))
        start, seed = found[-1].end, seed + 1
    return found


def stored(extents: list[Extent], size: int) -> tuple[Nodes, Root]:
    kept = Nodes()
    return kept, kept.store(build(extents, size, PLACES))


# --- height and coverage


@pytest.mark.parametrize(
    ("size", "level"),
    [
        (1, 0), (SPAN, 0), (SPAN + 1, 1), (1 << 20, 1), ((1 << 20) + 1, 2), (1 << 28, 2), ((1 << 28) + 1, 3),
        (1 << 36, 3), ((1 << 36) + 1, 4), (1 << 40, 4),
    ],
)  # fmt: skip
def test_the_height_is_the_least_that_covers_the_volume(size: int, level: int) -> None:
    assert height(size) == level
    assert coverage(level) >= size
    assert level == 0 or coverage(level - 1) < size


@pytest.mark.parametrize("size", [0, -1, MAX_BLOCKS + 1])
def test_volumes_have_a_size(size: int) -> None:
    with pytest.raises(FormatError, match="out of range"):
        height(size)


@given(sizes.flatmap(maps))
def test_cutting_at_spans_changes_no_block(extents: list[Extent]) -> None:
    cut = list(cut_at_spans(extents))
    assert all(extent.start // SPAN == (extent.end - 1) // SPAN for extent in cut)
    assert list(coalesce(cut)) == list(coalesce(extents))


# --- the central property


@thorough
@given(st.data())
def test_rewriting_is_building_anew(data: st.DataObject) -> None:
    """rewrite(build(a), edits) == build(edits over a), byte for byte, and only nodes that the edits touch are loaded."""
    size = data.draw(sizes)
    size_after = data.draw(sizes.filter(lambda other: other >= size))
    base = data.draw(maps(size, with_zeros=False))
    edits = data.draw(maps(size_after))
    kept, root = stored(base, size)
    before = spans(root, kept)
    kept.loads.clear()
    made = rewrite(root, edits, size_after, kept.load, PLACES)
    loaded = list(kept.loads)

    model = written(blocks_of(base), edits)
    expected = build(as_map(model), size_after, PLACES)
    assert made.root.digest == expected.root.digest
    assert made.root.size == size_after
    made.check()
    for name, node in expected.nodes.items():
        assert name in made.nodes or name in kept.places, "a node is neither new nor stored"
        if name in made.nodes:
            assert made.nodes[name].content == node.content
    assert set(made.nodes) <= set(expected.nodes)

    needed = {
        name
        for start, end, name, level in before
        if (covered := sum(min(e.end, end) - max(e.start, start) for e in edits if e.start < end and start < e.end))
        and (level or covered < min(end, size_after) - start)
    }
    assert needed - set(made.nodes) <= set(loaded) <= needed
    event(f"height {height(size)} to {height(size_after)}, {'some' if needed else 'no'} loads")

    after = kept.store(made)
    check(after, kept.load_many)
    assert [e for span, leaf in leaves(after, kept.load_many) for e in leaf.extents(span * SPAN)] == list(
        cut_at_spans(as_map(model))
    )


@thorough
@given(st.data())
def test_a_tree_does_not_depend_on_its_history(data: st.DataObject) -> None:
    """Any steps that lead to one map lead to one tree."""
    size = data.draw(sizes)
    kept, root = stored([], size)
    whole: list[Extent] = []
    for _ in range(data.draw(st.integers(1, 5))):
        edits = data.draw(maps(size, most=5))
        root = kept.store(rewrite(root, edits, size, kept.load, PLACES))
        whole = over(edits, whole)
    assert root.digest == build(whole, size, {}).root.digest


@given(sizes.flatmap(lambda size: st.tuples(st.just(size), maps(size, with_zeros=False))))
def test_what_was_built_is_found(case: tuple[int, list[Extent]]) -> None:
    size, extents = case
    kept, root = stored(extents, size)
    check(root, kept.load_many)
    expected = {
        span: [extent for extent in cut_at_spans(list(coalesce(extents))) if extent.start // SPAN == span]
        for span in {spot // SPAN + at for spot in edges(size) for at in (-1, 0, 1)}
        if 0 <= span * SPAN < size
    }
    for span, own in expected.items():
        kept.loads.clear()
        leaf = find(root, span, kept.load)
        assert ([] if leaf is None else leaf.extents(span * SPAN)) == own
        path = [name for start, end, name, _ in spans(root, kept) if start <= span * SPAN < end]
        assert kept.loads == path, "one node a level, and none below a span of zeros"
    assert [span for span, _ in leaves(root, kept.load_many)] == sorted(
        {e.start // SPAN for e in cut_at_spans(extents)}
    )


# --- what is not read


class Unread(Exception):
    pass


def refuse(name: Digest, place: Placement | None) -> Node:
    raise Unread(name.hex())


@pytest.mark.parametrize("size", SIZES)
def test_zeros_over_nothing_load_and_make_nothing(size: int) -> None:
    root = Root(ABSENT, size)
    made = rewrite(root, [zeros(0, min(size, 3 * coverage(1)))], size, refuse, {})
    assert made == Draft(root)


def test_zeros_over_an_absent_child_load_no_more_than_the_way_there() -> None:
    size = coverage(2)
    kept, root = stored(fill(0, 100) + fill(5 * SPAN, 5 * SPAN + 9), size)
    kept.loads.clear()
    far = rewrite(root, [zeros(100 * coverage(1), 102 * coverage(1))], size, kept.load, {})
    assert kept.loads == [root.digest]
    assert (far.root, far.nodes) == (root, {})
    kept.loads.clear()
    near = rewrite(root, [zeros(SPAN, 5 * SPAN)], size, kept.load, {})
    assert [level for _, _, name, level in spans(root, kept) if name in kept.loads] == [2, 1], "no leaf"
    assert (near.root, near.nodes) == (root, {})


@pytest.mark.parametrize("size", [SPAN, 3 * SPAN - 1000])
def test_a_leaf_that_an_edit_covers_is_not_read(size: int) -> None:
    start = (size - 1) // SPAN * SPAN
    kept, root = stored(fill(0, size), size)
    kept.loads.clear()
    made = rewrite(root, fill(start, size, seed=3), size, kept.load, PLACES)
    assert kept.loads == ([] if size == SPAN else [root.digest])
    assert made.root.digest == build(fill(0, start) + fill(start, size, seed=3), size, {}).root.digest


def test_an_edit_that_changes_nothing_makes_nothing() -> None:
    size = 3 * coverage(1)
    extents = fill(SPAN - 200, SPAN + 200) + fill(coverage(1) + 7, coverage(1) + 50)
    kept, root = stored(extents, size)
    made = rewrite(root, extents[3:6] + extents[-1:], size, kept.load, {})
    assert (made.root, made.nodes) == (root, {}), "the root keeps its placement, too"


def test_emptied_leaves_and_subtrees_disappear() -> None:
    size = 3 * coverage(1)
    low, high = fill(SPAN, SPAN + 50), fill(2 * coverage(1) + SPAN, 2 * coverage(1) + 3 * SPAN)
    kept, root = stored(low + high, size)
    for edits, left in (
        ([zeros(SPAN, SPAN + 50)], high),
        ([zeros(2 * coverage(1), size)], low),
        ([zeros(SPAN, SPAN + 50), zeros(2 * coverage(1) + SPAN, 2 * coverage(1) + 3 * SPAN)], []),
        ([zeros(0, size)], []),
    ):
        made = rewrite(root, edits, size, kept.load, {})
        made.check()
        assert made.root.digest == build(left, size, {}).root.digest
        assert (made.root.digest == ABSENT) == (not left)


def test_a_commit_writes_the_path_to_what_changed() -> None:
    size = coverage(2)
    extents = [e for at in range(20) for e in fill(at * coverage(1) // 2, at * coverage(1) // 2 + 60, at)]
    kept, root = stored(extents, size)
    made = rewrite(root, fill(5 * coverage(1) + 9, 5 * coverage(1) + 10, seed=9), size, kept.load, PLACES)
    assert sorted(node.level for node in made.nodes.values()) == [0, 1, 2]


def test_a_volume_grows_by_nodes_above() -> None:
    kept, root = stored(fill(0, 300), SPAN)
    made = rewrite(root, [], coverage(1) + 1, refuse, {})
    assert made.root.digest == build(fill(0, 300), coverage(1) + 1, {}).root.digest
    assert sorted(node.level for node in made.nodes.values()) == [1, 2]
    after = kept.store(made)
    assert find(after, 0, kept.load) is not None
    with pytest.raises(FormatError, match="cannot shrink"):
        rewrite(after, [], SPAN, refuse, {})


def test_the_largest_volume() -> None:
    extents = fill(0, 5) + fill(MAX_BLOCKS // 2 - 10, MAX_BLOCKS // 2 + 10) + fill(MAX_BLOCKS - 3, MAX_BLOCKS)
    kept, root = stored(extents, MAX_BLOCKS)
    check(root, kept.load_many)
    leaf = find(root, MAX_BLOCKS // SPAN - 1, kept.load)
    assert leaf is not None
    assert leaf.extents(MAX_BLOCKS - SPAN) == fill(MAX_BLOCKS - 3, MAX_BLOCKS)
    shorter = rewrite(root, [zeros(MAX_BLOCKS - 2, MAX_BLOCKS)], MAX_BLOCKS, kept.load, {})
    assert shorter.root.digest == build([*extents[:-1], extents[-1]._replace(length=1)], MAX_BLOCKS, {}).root.digest


@pytest.mark.parametrize("span", [-1, 1, 256])
def test_what_lies_outside_of_a_volume_is_not_found(span: int) -> None:
    kept, root = stored(fill(0, 50), 60)
    with pytest.raises(FormatError, match="outside"):
        find(root, span, kept.load)


def test_extents_end_where_the_volume_does() -> None:
    with pytest.raises(FormatError, match="ends at block 51"):
        build(fill(0, 51), 50, {})
    with pytest.raises(FormatError, match="ends at block 51"):
        rewrite(Root(ABSENT, 50), fill(0, 51), 50, refuse, {})


def test_old_placements_win_and_new_chunks_have_none() -> None:
    """A chunk of the base keeps its placement; the caller stores those without one."""
    kept, root = stored(fill(0, 20), SPAN)
    new, blocks = CHUNKS[20]
    edits = [*fill(100, 105), Extent(200, 1, new, blocks, 0), Extent(300, 1, *CHUNKS[21], 0)]
    elsewhere = place_of(Digest(bytes(range(32))))
    made = rewrite(root, edits, SPAN, kept.load, {CHUNKS[0][0]: elsewhere, CHUNKS[21][0]: elsewhere})
    (leaf,) = made.nodes.values()
    places = dict(zip(leaf.references, leaf.placements, strict=True))
    assert places[CHUNKS[0][0]] == PLACES[CHUNKS[0][0]]
    assert places[new] is None
    assert places[CHUNKS[21][0]] == elsewhere


# --- damage


def forest() -> tuple[dict[Digest, Node], Root]:
    """Returns a tree of height 1 whose only child is another inner node of height 1."""
    draft = build(fill(0, 10) + fill(SPAN, SPAN + 10), 3 * SPAN, PLACES)
    top = Inner(1, [0], [draft.root.digest], [PLACES[CHUNKS[0][0]]])
    return {**draft.nodes, top.digest: top}, Root(top.digest, 3 * SPAN, PLACES[CHUNKS[0][0]])


def test_nodes_of_the_wrong_level_are_refused() -> None:
    kept, root = forest()

    def load(name: Digest, place: Placement | None) -> Node:
        return kept[name]

    for attempt in (
        lambda: find(root, 0, load),
        lambda: rewrite(root, fill(0, 1), 3 * SPAN, load, {}),
    ):
        with pytest.raises(FormatError, match="level"):
            attempt()
    leaf = next(node for node in kept.values() if isinstance(node, Leaf))
    with pytest.raises(FormatError, match="level"):
        rewrite(Root(leaf.digest, 3 * SPAN), fill(0, 1), 3 * SPAN, load, {})


def test_check_finds_what_is_wrong_with_a_draft() -> None:
    draft = build(fill(0, 10) + fill(SPAN, SPAN + 10), 3 * SPAN, PLACES)
    draft.check()
    other = build(fill(0, 7), 3 * SPAN, PLACES)
    leaf = next(name for name, node in draft.nodes.items() if isinstance(node, Leaf))
    with pytest.raises(FormatError, match="not part of"):
        Draft(draft.root, {**draft.nodes, **other.nodes}).check()
    with pytest.raises(FormatError, match="neither"):
        Draft(draft.root, {name: node for name, node in draft.nodes.items() if name != leaf}).check()
    with pytest.raises(FormatError, match="stands in place of"):
        Draft(draft.root, {**draft.nodes, leaf: next(iter(other.nodes.values()))}).check()
    with pytest.raises(FormatError, match="neither"):
        Draft(Root(leaf, 5)).check()
    Draft(Root(leaf, 5, PLACES[CHUNKS[0][0]])).check()


def test_a_tree_is_assembled_from_leaves_too() -> None:
    size = coverage(1) + 5
    extents = fill(SPAN - 30, SPAN + 30) + fill(coverage(1), size)
    whole = build(extents, size, PLACES)
    kept = Nodes()
    again = assemble(list(leaves(kept.store(whole), kept.load_many)), size)
    assert again.root == whole.root
    assert set(again.nodes) == set(whole.nodes)
