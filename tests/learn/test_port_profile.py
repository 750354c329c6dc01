"""Profiles ported to other versions by path, by chunk and by place, and unchanged to their own."""

from hypothesis import given
from hypothesis import strategies as st

from blockmap.format import BLOCK
from blockmap.format.extent import Extent
from blockmap.format.filemap import File
from blockmap.format.reading_list import ReadItem
from blockmap.learn.first_touches import first_touches
from blockmap.learn.port_profile import port, read_items
from tests.learn.volumes import ROOT, Read, block_index, blocks, digest, trace_of

OTHER = digest("other")


@given(st.lists(st.tuples(st.integers(0, 50_000), st.integers(1, 99_999), st.integers(0, 700_000)), max_size=9))
def test_the_same_version_is_the_identity(reads: list[Read]) -> None:
    items = first_touches(trace_of(sorted(reads)), block_index())
    assert port(items, ROOT, block_index(), lambda path: [0]) == items
    same = port(items, ROOT, block_index(root=OTHER))
    assert [(item.start, item.blocks) for item in same if item.path is None] == [
        (item.start, item.blocks) for item in items if item.path is None
    ]


def test_a_file_is_found_by_its_path_and_clamped() -> None:
    items = first_touches(trace_of([blocks(12, 18, 3000), blocks(100, 7, 4000)]), block_index())
    new = block_index([Extent(200, 30, digest("x"), 30, 0), Extent(300, 9, digest("y"), 9, 0)], [
        File(b"bin/sh", 20 * BLOCK - 1, [(202, 3), (205, 15), (301, 3)])
    ], OTHER)  # fmt: skip
    found = port(items, ROOT, new)
    assert [(item.start, item.blocks, item.path, item.at, item.time_ms) for item in found] == [
        (202, 3, b"bin/sh", 0, 3),
        (205, 15, b"bin/sh", 3, 3),
        (301, 2, b"bin/sh", 18, 4),
    ]
    assert {item.chunk for item in found} == {digest("x"), digest("y")}
    assert read_items(found)[0] == ReadItem(202, 3, b"bin/sh", 0)


def test_of_a_file_that_changed_what_is_around_is_taken_and_what_is_as_far_from_its_end() -> None:
    items = first_touches(trace_of([blocks(26, 4), blocks(100, 7)]), block_index())
    new = block_index([Extent(200, 64, digest("x"), 64, 0)], [File(b"bin/sh", 40 * BLOCK, [(200, 40)])], OTHER)

    def read(count: int, size: int) -> list[tuple[int, int]]:
        return [(i.at, i.blocks) for i in port(items[:count], ROOT, new, sizes={b"bin/sh": size})]

    assert read(1, 39 * BLOCK) == [(13, 7)]
    assert read(1, 25 * BLOCK - 5) == [(13, 6), (28, 6)]
    assert read(2, 25 * BLOCK - 5) == [(13, 6), (28, 6), (19, 9), (34, 6)], "to the end is to the new end"
    assert read(1, 50 * BLOCK) == [(13, 6), (3, 6)]
    assert read(2, 99 * BLOCK) == [(13, 13)], "what is before the beginning or after the end is left out"


def test_of_a_file_with_the_same_content_nothing_more_is_taken() -> None:
    items = first_touches(trace_of([blocks(12, 18)]), block_index())
    new = block_index([Extent(200, 30, digest("a"), 64, 4)], [File(b"bin/sh", 30 * BLOCK, [(200, 30)])], OTHER)
    assert [(i.at, i.blocks) for i in port(items, ROOT, new, sizes={b"bin/sh": 20 * BLOCK})] == [(0, 18)]


def test_a_file_that_moved_is_found_by_its_chunk() -> None:
    items = first_touches(trace_of([blocks(12, 18)]), block_index())
    new = block_index([Extent(700, 30, digest("a"), 64, 4)], [File(b"usr/bin/sh", 30 * BLOCK, [(700, 30)])], OTHER)
    assert [(item.start, item.blocks, item.path, item.at) for item in port(items, ROOT, new)] == [
        (703, 18, b"usr/bin/sh", 3)
    ]


def test_blocks_of_no_file_are_found_by_chunk_or_where_they_were() -> None:
    items = first_touches(trace_of([blocks(0, 4), blocks(31, 2), blocks(5000, 1)]), block_index())
    extents = [
        Extent(0, 3, digest("new super"), 4, 0),
        Extent(40, 10, digest("b"), 10, 0),
        Extent(5000, 1, digest("file"), 1, 0),
    ]
    new = block_index(extents, [File(b"f", 1, [(5000, 1)])], OTHER)
    assert [(item.start, item.blocks) for item in port(items, ROOT, new)] == [(0, 3), (41, 2)]


def test_what_finding_a_file_reads_comes_before_it_once() -> None:
    items = first_touches(trace_of([blocks(12, 1, 5000), blocks(30, 1, 6000)]), block_index())
    asked = []

    def lookup(path: bytes) -> list[int]:
        asked.append(path)
        return [1, 2, 30] if path == b"bin/sh" else []

    found = port(items, ROOT, block_index(root=OTHER), lookup)
    assert [(item.start, item.blocks, item.time_ms) for item in found] == [(1, 2, 5), (30, 1, 5), (12, 1, 5)]
    assert asked == [b"bin/sh", b"etc/passwd"]
    assert port([], ROOT, block_index(root=OTHER)) == []
