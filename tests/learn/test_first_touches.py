"""First touches, compared with a slow model, and by example."""

from hypothesis import given
from hypothesis import strategies as st

from blockmap.format import BLOCK
from blockmap.format.profile import ProfileItem
from blockmap.learn.block_index import BlockIndex
from blockmap.learn.first_touches import first_touches
from tests.learn.volumes import FILES, Read, block_index, blocks, digest, trace_of


def places(items: list[ProfileItem]) -> list[tuple[int, int, bytes | None, int, int]]:
    return [(item.start, item.blocks, item.path, item.at, item.time_ms) for item in items]


def test_items_end_at_extents_and_files_and_zeros_are_left_out() -> None:
    found = first_touches(trace_of([blocks(8, 30, 2500), blocks(90, 20, 9999)]), block_index())
    assert places(found) == [
        (10, 2, None, 0, 2),
        (12, 18, b"bin/sh", 0, 2),
        (30, 1, b"etc/passwd", 0, 2),
        (31, 7, None, 0, 2),
        (100, 7, b"bin/sh", 18, 9),
        (107, 3, None, 0, 9),
    ]
    assert [(item.chunk, item.first) for item in found[:2]] == [(digest("a"), 5), (digest("a"), 7)]
    assert {item.touched for item in found} == {1}


def test_what_follows_directly_is_one_item_and_a_second_touch_is_none() -> None:
    found = first_touches(
        trace_of([blocks(12, 2), blocks(14, 2, 5000), blocks(12, 8, 7000), blocks(108, 1), blocks(107, 1)]),
        block_index(),
    )
    assert places(found) == [(12, 8, b"bin/sh", 0, 0), (108, 1, None, 0, 0), (107, 1, None, 0, 0)]


def test_a_read_need_not_be_aligned() -> None:
    found = first_touches(trace_of([(0, 2, 13 * BLOCK - 1), (0, 1, 20 * BLOCK)]), block_index())
    assert places(found) == [(12, 2, b"bin/sh", 0, 0), (20, 1, b"bin/sh", 8, 0)]


def test_nothing_counts_after_the_program_was_ready() -> None:
    reads = [blocks(12, 1, 7000), blocks(13, 1, 7001)]
    assert places(first_touches(trace_of(reads, ready_ms=7), block_index())) == [(12, 1, b"bin/sh", 0, 7)]
    assert first_touches(trace_of([]), block_index()) == []
    assert first_touches(trace_of(reads), BlockIndex(digest("root"), [], FILES)) == []


def slow(reads: list[Read], own: BlockIndex) -> list[tuple[int, int]]:
    """Returns each block of data once, with its time, in first-touch order."""
    data = {block for extent in own.extents for block in range(extent.start, extent.end)}
    found: dict[int, int] = {}
    for time_us, length, offset in reads:
        for block in range(offset // BLOCK, -(-(offset + length) // BLOCK)):
            if block in data:
                found.setdefault(block, time_us // 1000)
    return list(found.items())


@given(
    st.lists(st.tuples(st.integers(0, 50_000), st.integers(1, 40 * BLOCK), st.integers(0, 180 * BLOCK)), max_size=12)
)
def test_every_block_is_there_once_in_order(reads: list[Read]) -> None:
    reads.sort(key=lambda read: read[0])
    own = block_index()
    items = first_touches(trace_of(reads), own)
    model = slow(reads, own)
    assert [block for item in items for block in range(item.start, item.start + item.blocks)] == [b for b, _ in model]
    times = dict(model)
    extents = {extent.chunk: extent for extent in own.extents}
    for item in items:
        assert item.time_ms == times[item.start]
        extent = extents[item.chunk]
        assert item.first - extent.first == item.start - extent.start
        assert item.start + item.blocks <= extent.end
        if item.path is not None:
            (file,) = (file for file in FILES if file.path == item.path)
            ordered = [block for start, length in file.runs for block in range(start, start + length)]
            assert ordered[item.at : item.at + item.blocks] == list(range(item.start, item.start + item.blocks))
