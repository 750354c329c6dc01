"""What a replay asks for, from a bundle's head and what the host has."""

import itertools
from collections.abc import Collection

import pytest

from blockmap.format.bundle import BundleHead, FrameAt, NodeAt, Piece
from blockmap.format.digest import Digest
from blockmap.format.hint import BundleRef
from blockmap.format.reading_list import ReadItem
from blockmap.replay.plan import Missing, ReplayPlan, all_ranges, find_missing, head_range
from blockmap.replay.range_buffer import RangeBuffer

TABLE = 1000
FRAME = 100_000
REF = BundleRef("default", "bundles/x/1", TABLE + 5 * FRAME, TABLE)


def named(number: int) -> Digest:
    return Digest(bytes([number]) * 32)


def head(listed: int = 100) -> BundleHead:
    """Five frames: a node; chunk 1 in part; chunk 2, and the rest of chunk 1; a further node; chunk 3."""
    frames = [FrameAt(TABLE + at * FRAME, FRAME, FRAME, 0) for at in range(5)]
    pieces = [
        Piece(named(1), 8, 0b00001111, b"", 1, 0),
        Piece(named(2), 8, 0b11111111, b"", 2, 0),
        Piece(named(1), 8, 0b11110000, b"", 2, 0),
        Piece(named(3), 8, 0b00000001, b"", 4, 0),
    ]
    nodes = [NodeAt(named(101), 0, 0, 10), NodeAt(named(102), 3, 0, 10)]
    return BundleHead(nodes, pieces, frames, [ReadItem(0, listed, None, 0)], 100, TABLE, False)


def missing(own: BundleHead, chunks: Collection[int] = (), nodes: Collection[int] = ()) -> Missing:
    """What a host lacks that has some chunks and nodes."""
    return find_missing(
        own,
        lambda chunk, mask: chunk in map(named, chunks),
        lambda node: node in map(named, nodes),
    )


def planned(found: Missing, have: int = 0) -> ReplayPlan:
    return ReplayPlan(found, RangeBuffer(found.ranges(have)))


def covered(ranges: list[tuple[int, int]]) -> int:
    assert ranges == sorted(ranges)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges))
    return sum(end - start for start, end in ranges)


def test_an_empty_host_asks_for_all_and_the_head_comes_with_the_first_data() -> None:
    ranges = all_ranges(REF)
    assert covered(ranges) == REF.length
    assert ranges[0] == head_range(REF)
    assert TABLE < ranges[0][1] < TABLE + FRAME


def test_a_bundle_of_little_more_than_its_head_comes_in_one_range() -> None:
    assert head_range(BundleRef("default", "bundles/x/1", TABLE + 10, TABLE)) == (0, TABLE + 10)


def test_what_the_host_has_is_not_asked_for() -> None:
    own = head()
    assert missing(own).frames == [0, 1, 2, 3, 4]
    found = missing(own, chunks=[1, 3], nodes=[101])
    assert found.frames == [2, 3]
    ranges = found.ranges(0)
    assert covered(ranges) == 2 * FRAME
    assert (ranges[0][0], ranges[-1][1]) == (own.frames[2].offset, own.frames[3].end)
    assert missing(own, [1, 2, 3], [101, 102]).ranges(0) == []


def test_what_came_with_the_head_is_one_range_and_not_asked_for_again() -> None:
    have = TABLE + FRAME + 5000
    ranges = missing(head()).ranges(have)
    assert ranges[0] == (0, have)
    assert ranges[1][0] == have
    assert covered(ranges) == REF.length
    assert missing(head(), [1, 2, 3], [102]).ranges(have) == [(0, have)]


@pytest.mark.parametrize(("gap", "count"), [(1000, 1), (10_000, 2)])
def test_frames_with_a_small_gap_between_them_come_in_one_range(gap: int, count: int) -> None:
    own = head()
    own.frames[2:] = [FrameAt(5000, 10, 10, 0), FrameAt(5010, gap, gap, 0), FrameAt(5010 + gap, 10, 10, 0)]
    found = missing(own, chunks=[1], nodes=[101, 102])
    assert found.frames == [2, 4]
    assert len(found.ranges(0)) == count


def test_frames_have_what_is_new_and_are_wanted_up_to_the_listed_ones() -> None:
    plan = planned(missing(head(listed=8), chunks=[2]))
    assert list(plan.frames) == [0, 1, 2, 3, 4]
    assert [[own.node for own in frame.nodes] for frame in plan.frames.values()] == [
        [named(101)], [], [], [named(102)], [],
    ]  # fmt: skip
    assert [[own.chunk for own in frame.pieces] for frame in plan.frames.values()] == [
        [], [named(1)], [named(1)], [], [named(3)],
    ]  # fmt: skip
    assert [frame.wanted for frame in plan.frames.values()] == [True, True, False, True, False], "nodes always are"
    assert plan.parts == {number: (place.offset, place.end) for number, place in enumerate(plan.head.frames)}


def test_readers_wait_for_all_frames_that_have_their_blocks() -> None:
    plan = planned(missing(head()))
    assert plan.frames_with(named(1), 0b0001) == [plan.frames[1]]
    assert plan.frames_with(named(1), 0b00011000) == [plan.frames[1], plan.frames[2]]
    assert plan.frames_with(named(3), 0b11) is None, "it does not bring all of them"
    assert plan.frames_with(named(4), 1) is None
    assert planned(missing(head(), chunks=[3])).frames_with(named(3), 1) is None, "the host has it"


def test_the_tree_is_complete_when_the_nodes_before_all_chunks_are() -> None:
    assert [frame.number for frame in planned(missing(head())).tree] == [0]
    assert planned(missing(head(), nodes=[101])).tree == []


def test_frames_that_the_ranges_do_not_bring_are_left_out() -> None:
    found = missing(head())
    plan = ReplayPlan(found, RangeBuffer([(0, TABLE + 2 * FRAME + 1)]))
    assert list(plan.frames) == [0, 1]
    assert plan.frames_with(named(2), 1) is None
    assert plan.frames_with(named(1), 0b11110000) is None
