"""Entries of the logs about a pack: what is damaged in it, where what was in it is now."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import record
from blockmap.format.digest import Digest
from blockmap.format.pack_log import decode_damaged, decode_moved, encode_damaged, encode_moved
from blockmap.format.placement import Placement

PACK, OTHER, NAME = (Digest(bytes([at]) * 32) for at in (1, 2, 3))
digests = st.binary(min_size=32, max_size=32).map(Digest)
numbers = st.integers(0, (1 << 32) - 1)
lengths = st.integers(0, 1 << 20)
places = st.builds(Placement, digests, st.integers(0, 255), numbers, lengths, lengths)


@given(st.none() | st.frozensets(digests, max_size=5))
def test_damage_comes_back(names: frozenset[Digest] | None) -> None:
    assert decode_damaged(encode_damaged(PACK, names, "n"), PACK) == names


@given(st.dictionaries(digests, places, max_size=5))
def test_places_come_back(moved: dict[Digest, Placement]) -> None:
    assert decode_moved(encode_moved(PACK, moved, "n"), PACK) == moved


def test_the_entries_are_frozen() -> None:
    head = b'"format":1,"nonce":"n","pack":"' + b"01" * 32 + b'"'
    assert encode_damaged(PACK, [NAME], "n").split(b"\n")[0] == b'{"damaged":["' + b"03" * 32 + b'"],' + head + b"}"
    assert encode_damaged(PACK, None, "n").split(b"\n")[0] == b'{"damaged":null,' + head + b"}"
    line = encode_moved(PACK, {NAME: Placement(OTHER, 1, 80, 100, 4096)}, "n").split(b"\n")[0]
    tail = b',"packs":["' + b"02" * 32 + b'"],"places":[["' + b"03" * 32 + b'",0,1,80,100,4096]]}'
    assert line == b"{" + head + tail


def test_an_entry_is_about_one_pack_and_of_one_kind() -> None:
    damage, moved = encode_damaged(PACK, [NAME], "n"), encode_moved(PACK, {}, "n")
    for decode, data, pack in (
        (decode_damaged, damage, OTHER),
        (decode_moved, moved, OTHER),
        (decode_damaged, moved, PACK),
        (decode_moved, damage, PACK),
    ):
        with pytest.raises(FormatError):
            decode(data, pack)


@pytest.mark.parametrize(
    "row",
    [[1, 1, 80, 100, 4096], [-1, 1, 80, 100, 4096], [0, 1, 80, 100, (1 << 20) + 1], [0, 1, 80, 1 << 32, 1], [0, 1, 80]],
)
def test_places_that_make_no_sense_are_refused(row: list[int]) -> None:
    value = {"format": 1, "nonce": "n", "pack": PACK.hex(), "packs": [OTHER.hex()], "places": [[NAME.hex(), *row]]}
    with pytest.raises(FormatError):
        decode_moved(record.seal([record.encode(value)]), PACK)
