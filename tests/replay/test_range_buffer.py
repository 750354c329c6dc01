from hypothesis import given
from hypothesis import strategies as st

from blockmap.replay.range_buffer import RangeBuffer, split_ranges


def test_ranges_are_cut_into_such_as_double() -> None:
    assert list(split_ranges([(0, 100), (200, 230)], 30, 10, 40)) == [
        (0, 30), (30, 40), (40, 60), (60, 100), (200, 230),
    ]  # fmt: skip
    assert list(split_ranges([], 30, 10, 40)) == []


@given(st.lists(st.integers(1, 50), min_size=1, max_size=10), st.data())
def test_bytes_are_found_in_whatever_ranges_they_came(sizes: list[int], data: st.DataObject) -> None:
    whole = bytes(range(256))[: sum(sizes)] if sum(sizes) <= 256 else bytes(at % 251 for at in range(sum(sizes)))
    at, ranges = 0, []
    for size in sizes:
        ranges.append((at, at + size))
        at += size
    cut = RangeBuffer(ranges)
    start = data.draw(st.integers(0, at - 1))
    end = data.draw(st.integers(start + 1, at))
    spans = cut.spans(start, end)
    assert spans is not None
    assert not cut.is_here(*spans)
    cut.use(*spans)
    for number in data.draw(st.permutations(range(len(ranges)))):
        cut.put(number, memoryview(whole[slice(*ranges[number])]))
    assert cut.is_here(*spans)
    assert bytes(cut.take(*spans, start, end)) == whole[start:end]
    assert not cut.is_here(*spans), "what nobody needs any more is not kept"


def test_what_no_range_brings_is_not_there() -> None:
    cut = RangeBuffer([(10, 20), (20, 30), (40, 50)])
    assert cut.spans(10, 30) == (0, 1)
    assert cut.spans(15, 16) == (0, 0)
    assert [cut.spans(*each) for each in ((0, 5), (5, 15), (25, 45), (30, 35), (45, 51))] == [None] * 5
