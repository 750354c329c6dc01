"""Which ranges bring what is wanted, and what lies around it."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from blockmap.fetch.neighbours import Neighbours
from blockmap.format.digest import Digest
from blockmap.format.placement import Placement
from blockmap.store.plan import Wanted, chunk_at, node_at, requests


def wanted(number: int, pack: int, offset: int, stored: int) -> Wanted:
    name = Digest(number.to_bytes(32, "big"))
    return chunk_at(name, Placement(Digest(bytes([pack]) * 32), 1, offset, stored, 4096))


@st.composite
def lists(draw: st.DrawFn) -> list[Wanted]:
    """Chunks that mostly follow each other in a few packs, with gaps, in any order."""
    found, ends = [], {1: 0, 2: 50, 3: 7}
    for number in range(draw(st.integers(0, 15))):
        pack = draw(st.sampled_from([1, 1, 1, 2, 3]))
        offset = ends[pack] + draw(st.sampled_from([0, 0, 0, 5, 40]))
        stored = draw(st.integers(1, 60))
        found.append(wanted(number, pack, offset, stored))
        ends[pack] = offset + stored
    return draw(st.permutations(found))


@given(lists(), st.integers(1, 300), st.integers(0, 50))
def test_requests_bring_everything_once_in_as_few_ranges_as_may_be(items: list[Wanted], limit: int, gap: int) -> None:
    found = requests(items, limit, gap)
    assert sorted(item for request in found for item in request) == sorted(items)
    for request in found:
        assert len({item.place.pack for item in request}) == 1
        assert request[-1].end - request[0].place.offset <= limit or len(request) == 1
        for before, after in itertools.pairwise(request):
            assert 0 <= after.place.offset - before.end <= gap
    for request, other in itertools.pairwise(found):
        near = request[-1].place.pack == other[0].place.pack and other[0].place.offset - request[-1].end <= gap
        assert not near or other[0].end - request[0].place.offset > limit, "these two could have been one"


def test_packs_are_asked_in_the_order_in_which_they_are_wanted() -> None:
    items = [wanted(0, 9, 50, 10), wanted(1, 3, 0, 10), wanted(2, 9, 0, 10)]
    assert requests(items, 20) == [[items[2]], [items[0]], [items[1]]]


def test_what_overlaps_is_asked_for_apart() -> None:
    items = [wanted(0, 1, 0, 100), wanted(1, 1, 50, 100)]
    assert requests(items, 1000) == [[items[0]], [items[1]]]


def test_a_node_is_cached_by_where_it_is_stored() -> None:
    one, other = wanted(0, 1, 0, 10), wanted(0, 2, 0, 10)
    assert one.key == other.key == one.name
    assert len({node_at(each.name, each.place).key for each in (one, other)} | {one.key}) == 3


@given(lists(), st.integers(0, 200), st.data())
def test_neighbours_are_those_within_reach(items: list[Wanted], reach: int, data: st.DataObject) -> None:
    known = Neighbours()
    half = len(items) // 2
    known.add(items[:half])
    known.add(items[half:])
    gone = data.draw(st.sets(st.sampled_from(items))) if items else set()
    known.remove(list(gone))
    for own in items:
        expected = [
            item
            for item in sorted(set(items) - gone - {own}, key=lambda item: item.place.offset)
            if item.place.pack == own.place.pack
            and item.place.offset >= own.place.offset - reach
            and item.end <= own.end + reach
        ]
        assert known.around(own, reach) == expected
