"""Guesses that extend a ported profile: files read in part, and files beside them, within the limit."""

from blockmap.format import BLOCK
from blockmap.format.extent import Extent
from blockmap.format.filemap import File
from blockmap.learn.block_index import BlockIndex
from blockmap.learn.first_touches import first_touches
from blockmap.learn.guess_files import guess_files
from tests.learn.volumes import block_index, blocks, digest, trace_of

BIG, SMALL, UNREAD = (
    File(b"one/big", 400 * BLOCK, [(0, 200), (1000, 200)]),
    File(b"two/small", 9 * BLOCK, [(300, 9)]),
    File(b"three/unread", BLOCK, [(400, 1)]),
)
VOLUME = block_index(
    [Extent(start, length, digest(start), length, 0) for start, length in [(0, 200), (300, 9), (400, 1), (1000, 200)]],
    [BIG, SMALL, UNREAD],
)


def test_the_rest_of_files_that_are_read_comes_in_the_order_of_their_first_reads() -> None:
    items = first_touches(trace_of([blocks(0, 190, 1), blocks(302, 2, 2), blocks(1000, 90, 3)]), VOLUME)
    assert guess_files(items, VOLUME) == [*BIG.runs, *SMALL.runs]


def test_small_files_come_first_where_there_is_no_room_for_all() -> None:
    items = first_touches(trace_of([blocks(1000, 20, 1), blocks(302, 2, 2)]), VOLUME)
    assert guess_files(items, VOLUME) == SMALL.runs
    assert guess_files(items[1:], VOLUME) == [], "7 blocks are more than there is room for beside 2"


def test_files_beside_those_that_are_read_come_where_most_of_them_are() -> None:
    names = [b"lib/a.py", b"lib/b.py", b"lib/c.py", b"lib/a.so", b"lib/b.so", b"lib/c.so", b"other/a.py"]
    files = [File(name, 3 * BLOCK, [(3 * at, 3)]) for at, name in enumerate(names)]
    volume = block_index([Extent(0, 21, digest("x"), 21, 0)], files)
    items = first_touches(trace_of([blocks(0, 3, 1), blocks(3, 3, 2), blocks(9, 3, 3)]), volume)
    assert guess_files(items, volume) == [(0, 3), (3, 3), (9, 3), (6, 3)]


def packages(*sizes: int) -> BlockIndex:
    """Returns an index of directories `site/p0` and so on, each with a file of the given size and a small one of another kind."""
    files, at = [], 0
    for number, size in enumerate(sizes):
        files += [
            File(b"site/p%d/x.py" % number, size * BLOCK, [(at, size)]),
            File(b"site/p%d/sub/x.txt" % number, BLOCK, [(at + size, 1)]),
        ]
        at += size + 1
    return block_index([Extent(0, at, digest("x"), at, 0)], files)


def test_directories_beside_those_of_which_something_is_read_come_whole_where_most_are_read() -> None:
    volume = packages(4, 4, 4)
    items = first_touches(trace_of([blocks(0, 5, 1), blocks(10, 5, 2)]), volume)
    assert guess_files(items, volume) == [(0, 4), (4, 1), (10, 4), (14, 1), (5, 4), (9, 1)]


def test_directories_do_not_come_where_half_are_read() -> None:
    volume = packages(4, 4, 4, 4)
    items = first_touches(trace_of([blocks(0, 5, 1), blocks(10, 5, 2)]), volume)
    assert guess_files(items, volume) == [(0, 4), (4, 1), (10, 4), (14, 1)]


def test_a_directory_for_which_there_is_no_room_does_not_come_in_part() -> None:
    volume = packages(4, 10, 4)
    items = first_touches(trace_of([blocks(0, 5, 1), blocks(16, 5, 2)]), volume)
    assert guess_files(items, volume) == [(0, 4), (4, 1), (16, 4), (20, 1)]


def test_what_finding_a_file_reads_comes_before_it() -> None:
    volume = packages(4, 4, 4)
    items = first_touches(trace_of([blocks(0, 5, 1), blocks(10, 5, 2)]), volume)
    found = guess_files(items, volume, lambda path: [70] if path == b"site/p1/x.py" else [])
    assert found == [(0, 4), (4, 1), (10, 4), (14, 1), (70, 1), (5, 4), (9, 1)]


def test_what_is_of_no_file_brings_nothing() -> None:
    items = first_touches(trace_of([blocks(400, 1)]), block_index(VOLUME.extents, []))
    assert items
    assert guess_files(items, block_index(VOLUME.extents, [])) == []
