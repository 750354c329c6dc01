"""Profiles: decoding reverses encoding, and damage is noticed."""

from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import codec, profile
from blockmap.format.digest import Digest
from blockmap.format.profile import Profile, ProfileItem
from blockmap.store.packs import compress, expand

CHUNKS = [Digest(bytes([at]) * 32) for at in range(1, 5)]
ITEMS = [
    ProfileItem(0, 2, CHUNKS[0], 0, None, 0, 0, 3),
    ProfileItem(100, 5, CHUNKS[1], 3, b"bin/sh", 7, 12, 2),
    ProfileItem(1 << 39, 64, CHUNKS[0], 0, b"etc/\xff", 0, 900, 1),
]
SAMPLE = Profile("a/redis", "migrate", 7, Digest(b"v" * 32), Digest(b"r" * 32), 3, ITEMS, "host", 1_700_000_000, "00")
GOLDEN_HEAD = "eb9a1617a604b358a59e7e14b7b833b1eb268f60cd3b2daac8702bc6f48a9162"
GOLDEN_BODY = "9ab200f8b56c257e2842598489a85ce9e537449fe57a90b6a2344cae8fd3909a"


@st.composite
def items(draw: st.DrawFn) -> ProfileItem:
    first = draw(st.integers(0, 63))
    path = draw(st.none() | st.binary(max_size=20))
    word = st.integers(0, (1 << 32) - 1)
    blocks = draw(st.integers(1, 64 - first))
    start = draw(st.integers(0, (1 << 40) - 64))
    return ProfileItem(
        start, blocks, draw(st.sampled_from(CHUNKS)), first, path, draw(word), draw(word), draw(st.integers(1, 9))
    )


@given(st.lists(items(), max_size=10))
def test_what_is_encoded_comes_back(found: list[ProfileItem]) -> None:
    made = replace(SAMPLE, starts=9, items=found)
    assert profile.decode(profile.encode(made, compress), "a/redis", "migrate", 7, expand) == made


def test_the_body_is_frozen() -> None:
    data = profile.encode(SAMPLE, compress)
    length, raw = (int.from_bytes(data[at : at + 4], "little") for at in (8, 12))
    assert data[:8] == b"bmpf\x01\0\0\0"
    assert sha256(data[16 : 16 + length]).hexdigest() == GOLDEN_HEAD
    assert sha256(codec.decode(codec.ZSTD, data[16 + length : -32], raw)).hexdigest() == GOLDEN_BODY


@given(st.data())
def test_any_damage_is_noticed(data: st.DataObject) -> None:
    whole = profile.encode(SAMPLE, compress)
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(1, 255))
    for damaged in (whole[:at] + bytes([whole[at] ^ byte]) + whole[at + 1 :], whole[:at], whole + b"\0"):
        with pytest.raises(FormatError):
            profile.decode(damaged, "a/redis", "migrate", 7, expand)


@pytest.mark.parametrize("wanted", [("redis", "migrate", 7), ("a/redis", "default", 7), ("a/redis", "migrate", 8)])
def test_a_profile_of_something_else_is_refused(wanted: tuple[str, str, int]) -> None:
    with pytest.raises(FormatError, match="is not profile"):
        profile.decode(profile.encode(SAMPLE, compress), *wanted, expand)


@pytest.mark.parametrize(
    "wrong", [{"blocks": 65}, {"first": 60}, {"blocks": 0}, {"touched": 4}, {"touched": 0}, {"start": 1 << 40}]
)
def test_an_item_that_reaches_out_is_refused(wrong: dict[str, int]) -> None:
    made = replace(SAMPLE, items=[ITEMS[1]._replace(**wrong)])
    with pytest.raises(FormatError):
        profile.decode(profile.encode(made, compress), "a/redis", "migrate", 7, expand)
