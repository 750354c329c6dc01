"""The map of a clone's layer says what a bytearray says that got the same changes."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.volume.overlay import Held, Kind, OverlayMap, look

SIZE = 64
QUARTER = 1 << 22
"""A quarter of a span."""
NOTHING = 9
"""What the model has where no change was."""

KINDS = st.sampled_from(Kind)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int]:
    start = draw(st.integers(0, SIZE - 1))
    return start, draw(st.integers(start + 1, SIZE))


CHANGES = st.lists(st.tuples(ranges(), KINDS), max_size=40)


def built(changes: list[tuple[tuple[int, int], Kind]]) -> tuple[OverlayMap, bytearray]:
    """A map, and its model: a kind per byte."""
    made, model = OverlayMap(), bytearray([NOTHING] * SIZE)
    for (start, end), kind in changes:
        made.put(start, end, kind)
        made.check()
        model[start:end] = bytes([kind]) * (end - start)
    return made, model


def painted(extents: list[Held]) -> bytearray:
    model = bytearray([NOTHING] * SIZE)
    for start, end, kind in extents:
        model[start:end] = bytes([kind]) * (end - start)
    return model


@given(CHANGES, ranges(), KINDS)
def test_a_map_has_what_was_put_last(
    changes: list[tuple[tuple[int, int], Kind]], asked: tuple[int, int], kind: Kind
) -> None:
    made, model = built(changes)
    start, end = asked
    assert painted(list(made)) == model
    outside = bytes([NOTHING])
    assert painted(made.within(start, end)) == outside * start + model[start:end] + outside * (SIZE - end)
    assert made.has(start, end, kind) == (kind in model[start:end])
    before = list(made)
    assert made.put(start, end, kind) == (set(model[start:end]) != {kind}) == (list(made) != before)


@given(CHANGES)
def test_spans_make_no_difference(changes: list[tuple[tuple[int, int], Kind]]) -> None:
    """A map whose extents lie in many spans, and across their edges, has what one has whose extents lie in one span."""
    one, many = OverlayMap(), OverlayMap()
    for (start, end), kind in changes:
        assert many.put(start * QUARTER, end * QUARTER, kind) == one.put(start, end, kind)
        many.check()
        assert list(many) == [Held(start * QUARTER, end * QUARTER, kind) for start, end, kind in one]
        assert sorted(many.take_changed()[0]) == sorted(start * QUARTER for start in one.take_changed()[0])


@given(st.lists(CHANGES, min_size=1, max_size=6))
def test_stored_changes_make_the_same_map(batches: list[list[tuple[tuple[int, int], Kind]]]) -> None:
    """What is stored is exactly the map, after each batch of changes, also where storing one failed and the next has it."""
    made, rows = OverlayMap(), {}
    for number, batch in enumerate(batches):
        for (start, end), kind in batch:
            made.put(start, end, kind)
        starts, found = made.take_changed()
        if number % 3 == 1:
            made.put_back(starts)
            continue
        for start, each in zip(starts, found, strict=True):
            if each is None:
                rows.pop(start, None)
            else:
                rows[start] = each
        assert [rows[start] for start in sorted(rows)] == list(made)


@settings(max_examples=50)
@given(st.lists(CHANGES, max_size=3), ranges())
def test_the_highest_layer_that_has_something_shows(
    layers: list[list[tuple[tuple[int, int], Kind]]], asked: tuple[int, int]
) -> None:
    made = [built(changes) for changes in layers]
    pieces = look([each for each, _ in made], *asked)
    assert pieces[0].start == asked[0]
    assert pieces[-1].end == asked[1]
    assert all(left.end == right.start for left, right in pairwise(pieces))
    for piece in pieces:
        for at in range(piece.start, piece.end):
            shown = next(((n, model[at]) for n, (_, model) in enumerate(made) if model[at] != NOTHING), (-1, None))
            assert (piece.level, piece.kind) == shown


def test_neighbours_of_one_kind_are_one_extent() -> None:
    made = OverlayMap()
    for start in (4, 12, 0, 8):
        made.put(start, start + 4, Kind.DATA)
    assert list(made) == [Held(0, 16, Kind.DATA)]
    made.put(6, 10, Kind.ZEROS)
    assert list(made) == [Held(0, 6, Kind.DATA), Held(6, 10, Kind.ZEROS), Held(10, 16, Kind.DATA)]
