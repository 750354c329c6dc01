"""Maps: `over`, `within` and `coalesce` against a dict that has one entry per block."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format.digest import ABSENT
from blockmap.format.extent import Extent, check, coalesce, over, within, zeros
from tests.format.trees import CHUNKS, as_map, blocks_of, maps, written

SIZE = 700
(A, A_BLOCKS), (B, B_BLOCKS) = CHUNKS[8], CHUNKS[7]
every_map = maps(SIZE, with_zeros=True)
data_maps = maps(SIZE, with_zeros=False)


@given(every_map, data_maps)
def test_over_is_writing_block_by_block(upper: list[Extent], lower: list[Extent]) -> None:
    shown = over(upper, lower)
    check(shown)
    assert shown == as_map(written(blocks_of(lower), upper)), "the result is coalesced, and has no zeros"


@given(every_map, every_map, data_maps)
def test_layers_are_written_one_after_the_other(top: list[Extent], middle: list[Extent], low: list[Extent]) -> None:
    assert over(top, over(middle, low)) == as_map(written(written(blocks_of(low), middle), top))


@given(every_map, every_map)
def test_zeros_below_stay_where_nothing_lies_over_them(upper: list[Extent], lower: list[Extent]) -> None:
    hidden = {block for extent in upper for block in range(extent.start, extent.end)}
    below = {b for e in lower if e.chunk is None for b in range(e.start, e.end)} - hidden
    assert {b for e in over(upper, lower) if e.chunk is None for b in range(e.start, e.end)} == below


@given(data_maps)
def test_over_nothing_and_under_nothing(extents: list[Extent]) -> None:
    assert over(extents, []) == over([], extents) == over(extents, extents) == list(coalesce(extents))
    assert over([zeros(0, SIZE)], extents) == []


@given(data_maps)
def test_coalesce_changes_no_block_and_is_done_after_once(extents: list[Extent]) -> None:
    joined = list(coalesce(extents))
    assert joined == as_map(blocks_of(extents))
    assert list(coalesce(joined)) == joined
    single = [extent.piece(at, at + 1) for extent in extents for at in range(extent.start, extent.end)]
    assert list(coalesce(single)) == joined


def test_what_is_not_coalesced() -> None:
    apart = [
        Extent(0, 2, A, A_BLOCKS, 0),
        Extent(3, 2, A, A_BLOCKS, 2),  # a gap between
        Extent(5, 2, A, A_BLOCKS, 5),  # side by side, but not in the chunk
        Extent(7, 2, B, B_BLOCKS, 7),  # another chunk
        zeros(9, 10),
        Extent(10, 1, B, B_BLOCKS, 9),
    ]
    assert list(coalesce(apart)) == apart
    assert list(coalesce([zeros(0, 3), zeros(3, 4), zeros(5, 6)])) == [zeros(0, 4), zeros(5, 6)]


@given(data_maps, st.lists(st.integers(1, 3) | st.integers(1, 100), max_size=16), st.integers(0, 150))
def test_within_splits_a_map(extents: list[Extent], steps: list[int], start: int) -> None:
    edges = list(accumulate(steps, initial=start))
    ranges = list(zip(edges[::2], edges[1::2], strict=False))
    outside, inside = within(extents, ranges)
    covered = {block for start, end in ranges for block in range(start, end)}
    model = blocks_of(extents)
    assert outside == as_map({block: at for block, at in model.items() if block not in covered})
    assert inside == as_map({block: at for block, at in model.items() if block in covered})


@given(data_maps, st.integers(0, SIZE), st.integers(1, SIZE))
def test_pieces(extents: list[Extent], start: int, length: int) -> None:
    for extent in extents:
        if start < extent.end and extent.start < start + length:
            piece = extent.piece(start, start + length)
            check([piece])
            expected = {b: at for b, at in blocks_of([extent]).items() if start <= b < start + length}
            assert blocks_of([piece]) == expected


@given(every_map)
def test_check_lets_maps_through(extents: list[Extent]) -> None:
    check(extents)


@pytest.mark.parametrize(
    "extents",
    [
        [Extent(-1, 1, A, A_BLOCKS, 0)],
        [Extent(0, 0, A, A_BLOCKS, 0)],
        [Extent(0, -1, None, 0, 0)],
        [Extent(0, 2, A, A_BLOCKS, 0), Extent(1, 2, A, A_BLOCKS, 0)],
        [Extent(5, 2, A, A_BLOCKS, 0), Extent(0, 2, A, A_BLOCKS, 0)],
        [Extent(0, A_BLOCKS + 1, A, A_BLOCKS, 0)],
        [Extent(0, 2, A, A_BLOCKS, A_BLOCKS - 1)],
        [Extent(0, 1, A, A_BLOCKS, -1)],
        [Extent(0, 1, A, 0, 0)],
        [Extent(0, 1, ABSENT, 1, 0)],
        [Extent(0, 1, None, 1, 0)],
        [Extent(0, 1, None, 0, 1)],
    ],
    ids=str,
)
def test_check_refuses_what_is_no_map(extents: list[Extent]) -> None:
    with pytest.raises(FormatError, match="Extent"):
        check(extents)
