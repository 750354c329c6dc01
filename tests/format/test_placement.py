"""Tables of placements say what the lists say that they were made of."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.placement import Placement, PlacementTable

HOME = Digest(b"\7" * 32)
PACKS = [Digest(bytes([number]) * 32) for number in range(1, 5)]
numbers = st.integers(0, (1 << 32) - 1)
places = st.builds(Placement, st.sampled_from(PACKS), st.integers(0, 255), numbers, numbers, numbers)
known_lists = st.lists(places, max_size=12)
lists = st.lists(st.none() | places, max_size=12)


@given(lists, st.data())
def test_a_table_is_the_list(given_places: list[Placement | None], data: st.DataObject) -> None:
    table = PlacementTable.of(given_places)
    assert list(table) == given_places
    assert [table[at] for at in range(len(table))] == given_places
    start = data.draw(st.integers(0, len(given_places)))
    assert list(table[start:]) == given_places[start:]
    unknown = [at for at, place in enumerate(given_places) if place is None]
    assert table.first_unknown() == (unknown[0] if unknown else None)
    assert table.ends() == ends_of(given_places)


@given(lists, lists, st.data())
def test_some_of_a_table_and_more(
    given_places: list[Placement | None], more: list[Placement | None], data: st.DataObject
) -> None:
    both = given_places + more
    chosen = data.draw(st.lists(st.integers(0, len(both) - 1), unique=True)) if both else []
    made = PlacementTable.of(given_places).chosen(np.array(chosen, dtype=np.intp), more)
    assert list(made) == [both[at] for at in chosen]
    assert made.ends() == ends_of(list(made))


@given(lists, st.lists(places, min_size=12, max_size=12))
def test_only_what_is_unknown_is_filled(given_places: list[Placement | None], others: list[Placement]) -> None:
    names = [Digest(bytes([at + 100]) * 32) for at in range(len(given_places))]
    wanted = dict(zip(names, others, strict=False))
    filled = PlacementTable.of(given_places).filled(names, wanted.__getitem__)
    assert list(filled) == [place or wanted[name] for name, place in zip(names, given_places, strict=True)]
    nothing = PlacementTable.of(given_places).filled(names, lambda name: None)
    assert list(nothing) == given_places


@given(known_lists, known_lists, st.data())
def test_what_is_stored_depends_on_the_placements_alone(
    given_places: list[Placement], others: list[Placement], data: st.DataObject
) -> None:
    """Not on packs that nothing refers to any more, nor on their order in the table."""
    table = PlacementTable.of([*others, *given_places])
    own = table.chosen(np.arange(len(others), len(table)), ())
    stored = own.encode()
    assert stored == PlacementTable.of(given_places).encode()
    assert list(PlacementTable.decode(b"node" + stored, 4, len(own), HOME)) == given_places


@given(st.lists(places.map(lambda place: place._replace(pack=ABSENT)) | places, min_size=1, max_size=6))
def test_the_pack_that_holds_a_node_stays_one_pack(given_places: list[Placement]) -> None:
    """A node may name its own pack both ways."""
    stored = PlacementTable.of([*given_places, given_places[0]._replace(pack=HOME)]).encode()
    table = PlacementTable.decode(stored, 0, len(given_places) + 1, HOME)
    read = [place._replace(pack=HOME) if place.pack == ABSENT else place for place in given_places]
    read.append(given_places[0]._replace(pack=HOME))
    assert list(table) == read
    assert table.ends() == ends_of(read)
    assert table.encode() == PlacementTable.of(read).encode()
    more = table.chosen(np.arange(len(read) + 1), [given_places[0]])
    assert list(more) == [*read, given_places[0]]


def test_what_is_not_stored_has_no_stored_form() -> None:
    with pytest.raises(FormatError, match="not stored"):
        PlacementTable.of([None]).encode()


def ends_of(given_places: Sequence[Placement | None]) -> dict[Digest, int]:
    ends: dict[Digest, int] = {}
    for place in given_places:
        if place is not None:
            ends[place.pack] = max(ends.get(place.pack, 0), place.offset + place.stored)
    return ends
