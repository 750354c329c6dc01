"""Merging: order, evidence, and blocks that are dropped."""

from hypothesis import given
from hypothesis import strategies as st

from blockmap.format.profile import ProfileItem
from blockmap.learn.first_touches import first_touches
from blockmap.learn.merge import MEMORY, Sample, merge, outside
from tests.learn.volumes import Read, block_index, blocks, trace_of

INDEX = block_index()


def start(*reads: Read, is_evidence: bool = True, prefilled: list[ProfileItem] | None = None) -> Sample:
    return Sample(first_touches(trace_of(reads), INDEX), is_evidence, prefilled)


def items_of(*reads: Read, touched: int = 1) -> list[ProfileItem]:
    return [item._replace(touched=touched) for item in first_touches(trace_of(reads), INDEX)]


def shown(items: list[ProfileItem]) -> list[tuple[int, int, int, int]]:
    return [(item.start, item.blocks, item.time_ms, item.touched) for item in items]


@given(st.lists(st.tuples(st.integers(0, 50_000), st.integers(1, 99_999), st.integers(0, 700_000)), max_size=9))
def test_one_start_is_its_own_profile(reads: list[Read]) -> None:
    own = start(*sorted(reads))
    merged = merge(INDEX, [], 0, [own])
    assert merged.items == own.items
    assert (merged.starts, merged.whole, merged.added, merged.is_guess) == (1, 1, 0, False)
    again = merge(INDEX, merged.items, 1, [own])
    assert again.items == [item._replace(touched=2) for item in own.items]
    assert again.starts == 2


def test_the_order_is_that_of_the_median_times() -> None:
    a, c = 12, 100
    starts = [
        start(blocks(a, 1, 1000), blocks(30, 1, 2000), blocks(c, 1, 90_000)),
        start(blocks(c, 1, 3000), blocks(a, 1, 5000), blocks(30, 1, 6000)),
        start(blocks(30, 1, 500), blocks(c, 1, 4000), blocks(a, 1, 9000)),
    ]
    assert shown(merge(INDEX, [], 0, starts).items) == [(30, 1, 2, 3), (c, 1, 4, 3), (a, 1, 5, 3)]


def test_what_one_of_many_touched_is_dropped() -> None:
    common, odd = blocks(12, 3), blocks(100, 2, 1000)
    assert shown(merge(INDEX, [], 0, [start(common), start(common, odd)]).items) == [(12, 3, 0, 2), (100, 2, 1, 1)]
    assert shown(merge(INDEX, [], 0, [start(common), start(common, odd), start(common)]).items) == [(12, 3, 0, 3)]
    assert shown(merge(INDEX, items_of(common, odd), 2, [start(common)]).items) == [(12, 3, 0, 2)]


def test_a_start_with_a_profile_only_adds() -> None:
    old = items_of(blocks(12, 3), touched=3)
    prefilled = items_of(blocks(12, 3))
    merged = merge(INDEX, old, 3, [start(blocks(13, 1), blocks(100, 2, 1000), prefilled=prefilled)])
    assert shown(merged.items) == [(12, 3, 0, 3), (100, 2, 1, 1)]
    assert (merged.starts, merged.whole, merged.added) == (3, 0, 1)
    decided = merge(INDEX, merged.items, 3, [start(blocks(12, 3))])
    assert shown(decided.items) == [(12, 3, 0, 4)]


def test_what_only_one_of_many_starts_with_a_profile_read_is_not_added() -> None:
    old = items_of(blocks(12, 3), touched=3)
    odd, usual = start(blocks(30, 1), blocks(100, 2), prefilled=old), start(blocks(100, 1), prefilled=old)
    assert shown(merge(INDEX, old, 3, [odd, usual]).items) == [
        (12, 3, 0, 3),
        (30, 1, 0, 1),
        (100, 1, 0, 2),
        (101, 1, 0, 1),
    ]
    assert shown(merge(INDEX, old, 3, [odd, usual, usual]).items) == [(12, 3, 0, 3), (100, 1, 0, 3)]


def test_what_a_replay_hid_is_neither_hit_nor_miss() -> None:
    old = items_of(blocks(12, 3), touched=2)
    merged = merge(INDEX, old, 2, [start(prefilled=old) for _ in range(9)])
    assert shown(merged.items) == shown(old)
    assert merged.starts == 2


def test_a_warm_host_counts_only_where_there_is_nothing_else() -> None:
    warm, cold = start(blocks(100, 1), is_evidence=False), start(blocks(12, 1))
    assert shown(merge(INDEX, [], 0, [warm, cold]).items) == [(12, 1, 0, 1)]
    assert shown(merge(INDEX, items_of(blocks(12, 1)), 1, [warm]).items) == [(12, 1, 0, 1)]
    alone = merge(INDEX, [], 0, [warm])
    assert alone.is_guess
    assert shown(alone.items) == [(100, 1, 0, 1)]
    assert len(merge(INDEX, [], 0, [warm, cold, *[warm] * 3]).items) == 1


def test_old_starts_fade() -> None:
    items, starts = items_of(blocks(12, 1), touched=1), 1
    for _ in range(3 * MEMORY):
        merged = merge(INDEX, items, starts, [start(blocks(100, 1))])
        items, starts = merged.items, merged.starts
    assert starts == MEMORY
    assert shown(items) == [(100, 1, 0, MEMORY - 1)]  # it was missed once
    for _ in range(2 * MEMORY):
        merged = merge(INDEX, items, starts, [start(blocks(12, 1))])
        items, starts = merged.items, merged.starts
    assert [item.start for item in items] == [12]


def test_what_is_new_stays_until_the_next_start_decides() -> None:
    old = items_of(blocks(12, 3), touched=9)
    first = merge(INDEX, old, 9, [start(blocks(12, 3), blocks(100, 2, 1000))])
    assert shown(first.items) == [(12, 3, 0, 10), (100, 2, 1, 1)]
    confirmed = merge(INDEX, first.items, 10, [start(blocks(12, 3), blocks(100, 1, 1000))])
    assert shown(confirmed.items) == [(12, 3, 0, 11), (100, 1, 1, 2)]


def test_blocks_outside_are_counted() -> None:
    known = items_of(blocks(10, 10))
    assert outside(items_of(blocks(5, 20)), known) == 5
    assert outside(known, known) == 0
    assert outside(known, []) == 10
