"""Small gaps between the blocks that starts read are filled."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from blockmap.format.digest import Digest
from blockmap.format.extent import Extent
from blockmap.format.filemap import File
from blockmap.format.profile import ProfileItem
from blockmap.learn.block_index import BlockIndex, blocks_of
from blockmap.learn.fill_gaps import fill_gaps

CHUNK = Digest(b"c" * 32)
OTHER = Digest(b"o" * 32)
INDEX = BlockIndex(
    Digest(b"r" * 32),
    [Extent(100, 40, CHUNK, 64, 0), Extent(140, 20, OTHER, 64, 0), Extent(200, 30, OTHER, 64, 20)],
    [File(b"a", 30 * 4096, [(100, 30)]), File(b"b", 30 * 4096, [(130, 30)])],
)


def touched(*blocks: int, index: BlockIndex = INDEX) -> list[ProfileItem]:
    ones = np.ones(len(blocks), np.int64)
    return index.items(np.array(blocks), np.arange(len(blocks)), ones)


def order(items: list[ProfileItem]) -> list[int]:
    return [int(block) for block in blocks_of(items)[0]]


def test_a_gap_comes_with_the_neighbour_that_is_read_first() -> None:
    assert order(fill_gaps(touched(110, 150, 113), INDEX)) == [110, 111, 112, 150, 113]
    assert order(fill_gaps(touched(113, 150, 110), INDEX)) == [111, 112, 113, 150, 110]


def test_large_gaps_other_files_and_zeros_stay() -> None:
    for blocks in ((110, 114), (129, 131), (159, 200), (110,), (128, 130)):
        assert order(fill_gaps(touched(*blocks), INDEX)) == list(blocks)
    assert order(fill_gaps(touched(210, 212), INDEX)) == [210, 211, 212], "blocks of no file are neighbours too"


def test_larger_gaps_are_filled_where_nearly_all_around_is_read() -> None:
    index = BlockIndex(Digest(b"r" * 32), [Extent(0, 64, CHUNK, 64, 0), Extent(64, 64, OTHER, 64, 0)], [])
    dense = [block for block in range(24, 80) if not 50 <= block < 58]
    assert order(fill_gaps(touched(*dense, index=index), index)) == [
        *range(24, 50),
        *range(50, 58),
        *range(58, 80),
    ]
    wider = [block for block in dense if block != 58]
    assert order(fill_gaps(touched(*wider, index=index), index)) == wider
    thin = dense[8:-2]
    assert len(thin) < 42
    assert order(fill_gaps(touched(*thin, index=index), index)) == thin


@given(st.lists(st.sampled_from([*range(100, 160), *range(200, 230)]), unique=True, max_size=40))
def test_filling_keeps_the_order_and_adds_each_block_once(blocks: list[int]) -> None:
    found = order(fill_gaps(touched(*blocks), INDEX))
    assert len(found) == len(set(found))
    assert [block for block in found if block in set(blocks)] == blocks
    assert all(any(abs(block - own) <= 2 for own in blocks) for block in found)
