"""Parts of an object out of ranges that were chosen before the parts were known."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from blockmap.replay.range_buffer import RangeBuffer, split_ranges


def test_ranges_are_split_into_requests_that_double() -> None:
    assert list(split_ranges([(0, 100), (200, 230)], 30, 10, 40)) == [
        (0, 30), (30, 40), (40, 60), (60, 100), (200, 230),
    ]  # fmt: skip
    assert list(split_ranges([], 30, 10, 40)) == []


@given(st.lists(st.integers(1, 50), min_size=1, max_size=10), st.data())
def test_every_part_is_handed_out_once_however_its_ranges_come(sizes: list[int], data: st.DataObject) -> None:
    ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
    ranges = list(zip([0, *ends], ends, strict=False))
    whole = bytes(at % 251 for at in range(ends[-1]))
    cuts = sorted(data.draw(st.sets(st.integers(0, ends[-1]), max_size=6)))
    parts = dict(enumerate(itertools.pairwise(cuts)))
    order = data.draw(st.permutations(range(len(ranges))))
    known_after = data.draw(st.integers(0, len(order)))
    buffer = RangeBuffer(ranges)
    found: list[tuple[int, memoryview]] = []
    for number in order[:known_after]:
        assert buffer.put(number, memoryview(whole[slice(*ranges[number])])) == []
    found += buffer.expect(parts)
    for number in order[known_after:]:
        found += buffer.put(number, memoryview(whole[slice(*ranges[number])]))
    assert {part: bytes(each) for part, each in found} == {part: whole[slice(*where)] for part, where in parts.items()}
    assert len(found) == len(parts)
    assert buffer.left == []


def test_what_is_left_are_the_parts_that_have_not_come() -> None:
    buffer = RangeBuffer([(0, 10), (10, 20)])
    assert buffer.left == []
    assert buffer.put(0, memoryview(bytes(10))) == []
    assert [part for part, _ in buffer.expect({1: (2, 5), 2: (8, 12)})] == [1]
    assert buffer.left == [2]
    assert [part for part, _ in buffer.put(1, memoryview(bytes(10)))] == [2]
    assert buffer.left == []


def test_bytes_that_no_range_brings_are_covered_by_none() -> None:
    buffer = RangeBuffer([(10, 20), (20, 30), (40, 50)])
    assert buffer.covering(10, 30) == range(2)
    assert buffer.covering(15, 16) == range(1)
    assert not any(buffer.covering(*each) for each in ((0, 5), (5, 15), (25, 45), (30, 35), (45, 51)))
