"""Which neighbours a miss takes along."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from blockmap.fetch.plan import Wanted, joined
from blockmap.format.digest import Digest
from blockmap.format.node import Placement


def wanted(number: int, pack: int, offset: int, stored: int) -> Wanted:
    name = Digest(number.to_bytes(32, "big"))
    return Wanted(name, Placement(Digest(bytes([pack]) * 32), 1, offset, stored, 4096))


@st.composite
def lists(draw: st.DrawFn) -> list[Wanted]:
    """Chunks that mostly follow each other in a pack, with gaps, other packs and steps back."""
    found, pack, offset = [], 1, draw(st.integers(0, 100))
    for number in range(draw(st.integers(1, 12))):
        match draw(st.integers(0, 6)):
            case 0:
                pack += 1
            case 1:
                offset += draw(st.integers(1, 50))
            case 2:
                offset = max(0, offset - draw(st.integers(1, 50)))
        stored = draw(st.integers(1, 60))
        found.append(wanted(number, pack, offset, stored))
        offset += stored
    return found


@given(lists(), st.integers(1, 300), st.sets(st.integers(0, 12)))
def test_a_request_is_the_longest_useful_run(items: list[Wanted], limit: int, at_hand: set[int]) -> None:
    def skip(name: Digest) -> bool:
        return int.from_bytes(name, "big") in at_hand

    plan = joined(items, limit, skip)
    first, last = plan[0].place, plan[-1].place
    assert plan == items[: len(plan)], "in order, none left out between"
    assert plan[0] is items[0], "what is asked for comes, however long or known it is"
    for before, after in itertools.pairwise(plan):
        assert before.place.pack == after.place.pack
        assert before.place.offset + before.place.stored == after.place.offset
    length = last.offset + last.stored - first.offset
    assert length <= limit or len(plan) == 1
    assert len(plan) == 1 or not skip(plan[-1].chunk), "nothing at hand at the end"
    # Nothing more would have fitted that is useful.
    end = last.offset + last.stored
    for item in items[len(plan) :]:
        place = item.place
        if place.pack != first.pack or place.offset != end or end + place.stored - first.offset > limit:
            break
        assert skip(item.chunk)
        end += place.stored


def test_what_is_at_hand_in_the_middle_comes_along() -> None:
    items = [wanted(0, 1, 0, 10), wanted(1, 1, 10, 10), wanted(2, 1, 20, 10), wanted(3, 1, 30, 10)]
    assert joined(items, 100, lambda name: name == items[1].chunk) == items
    assert joined(items, 100, lambda name: name != items[2].chunk) == items[:3]
    assert joined(items, 100, lambda name: True) == items[:1]
    assert joined(items, 25, lambda name: False) == items[:2]
