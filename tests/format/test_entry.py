"""Entries of names' logs: round trips, a golden digest, and nothing but FormatError for any other bytes."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import entry, keys, record
from blockmap.format.digest import Digest
from blockmap.format.entry import Entry
from blockmap.format.placement import Placement
from blockmap.format.signature import Signature, first_line
from blockmap.format.version import NodeRun

digests = st.binary(min_size=32, max_size=32).map(Digest)
small = st.integers(0, (1 << 32) - 1)
placements = st.builds(Placement, digests, st.integers(0, 1), small, small, small)
runs = st.builds(
    lambda pack, start, length: NodeRun(pack, start, start + length),
    digests,
    st.integers(0, 1 << 20),
    st.integers(1, 1 << 20),
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


signatures = st.builds(Signature, st.binary(min_size=8, max_size=8).map(bytes.hex), st.binary(min_size=64, max_size=64))


@st.composite
def any_entries(draw: st.DrawFn) -> Entry:
    n = draw(st.integers(1, 3) | st.integers(1, entry.MAX_NUMBER))
    version = draw(st.none() | digests)
    return Entry(
        key=keys.entry(draw(st.sampled_from(["redis", "host:5000/a/b"])), draw(st.sampled_from(["7", "latest"])), n),
        n=n,
        version=version,
        number=0 if version is None else draw(st.integers(1, 8)),
        root=draw(st.none() | placements),
        run=draw(st.none() | runs),
        oci=draw(st.none() | digests),
        previous=None if n == 1 else draw(digests),
        nonce=draw(text),
        time=draw(st.integers(0, entry.MAX_TIME)),
        host=draw(text),
        message=draw(text),
        signature=draw(st.none() | signatures),
    )


SAMPLE = Entry(
    key=keys.entry("host:5000/team/redis", "7.2", 2),
    n=2,
    version=Digest(bytes(range(32))),
    number=1,
    root=Placement(Digest(bytes(range(1, 33))), 1, 80, 100, 4000),
    run=NodeRun(Digest(bytes(range(1, 33))), 80, 5000),
    oci=bytes(range(2, 34)),
    previous=bytes(range(3, 35)),
    nonce="00112233445566778899aabbccddeeff",
    time=1_700_000_000,
    host="builder",
    message="nightly",
)


@given(any_entries())
def test_what_is_encoded_is_decoded(value: Entry) -> None:
    data = entry.encode(value)
    assert entry.decode(data, value.key) == value
    assert entry.encode(entry.decode(data, value.key)) == data


GOLDEN = "ace84ceea24e67cb2ebb87031bed0811444eef8a23cca411c61aa1e93f7e4e62"


def test_the_format_is_frozen() -> None:
    data = entry.encode(SAMPLE)
    assert data.startswith(
        b'{"format":1,"host":"builder","key":"names/host=5000~team~redis/7.2/0000000000000002","kind":"set"'
    )
    assert hashlib.sha256(data).hexdigest() == GOLDEN
    assert entry.digest(data).hex() == GOLDEN


def changed(**changes: Any) -> bytes:
    """Returns the sample with other values and a correct seal."""
    value = record.decode(record.unseal(entry.encode(SAMPLE))[0])
    return record.seal([record.encode({key: item for key, item in (value | changes).items() if item is not ...})])


HEX = "ab" * 32
WRONG: list[dict[str, Any]] = [
    *({key: ...} for key in record.decode(record.unseal(entry.encode(SAMPLE))[0])),
    {"format": 2},
    {"format": "1"},
    {"key": "names/redis/7.2/0000000000000002"},
    {"kind": "move"},
    {"kind": "remove"},
    {"kind": None},
    {"version": None},
    {"version": "AB" * 32},
    {"version": 7},
    {"version": ["a"] * 64},
    {"n": 1},
    {"n": 3},
    {"n": True},
    {"n": "2"},
    {"n": None},
    {"number": -1},
    {"number": "1"},
    {"number": 10**16},
    {"root": []},
    {"root": {"pack": HEX}},
    {"root": {"codec": -1, "offset": 0, "pack": HEX, "raw": 0, "stored": 0}},
    {"root": {"codec": 0, "offset": 1 << 32, "pack": HEX, "raw": 0, "stored": 0}},
    {"run": 5},
    {"run": {}},
    {"run": {"end": 5, "pack": HEX, "start": 5}},
    {"run": {"end": 5, "pack": HEX, "start": -1}},
    {"run": {"end": 1 << 33, "pack": HEX, "start": 1}},
    {"run": {"end": 5, "pack": "x", "start": 1}},
    {"oci": ""},
    {"oci": "sha256:" + HEX},
    {"previous": None},
    {"previous": "0" * 63},
    {"nonce": 5},
    {"nonce": None},
    {"time": -1},
    {"time": entry.MAX_TIME + 1},
    {"time": False},
    {"host": ["a"]},
    {"message": {}},
]


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_wrong_values_are_format_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        entry.decode(changed(**changes), SAMPLE.key)


def test_later_releases_may_add_keys() -> None:
    assert entry.decode(changed(signature="x"), SAMPLE.key) == SAMPLE


def test_an_entry_belongs_to_its_key() -> None:
    with pytest.raises(FormatError, match="is not the entry names/redis/7/0000000000000002"):
        entry.decode(entry.encode(SAMPLE), keys.entry("redis", "7", 2))


def test_the_first_entry_continues_none() -> None:
    first = replace(SAMPLE, key=keys.entry("redis", "7", 1), n=1)
    with pytest.raises(FormatError, match="number 1"):
        entry.decode(entry.encode(first), first.key)
    entry.decode(entry.encode(replace(first, previous=None)), first.key)


def test_entries_are_bounded() -> None:
    with pytest.raises(FormatError, match="too long"):
        entry.decode(entry.encode(replace(SAMPLE, message="x" * entry.MAX_BYTES)), SAMPLE.key)


SIGNED = replace(SAMPLE, signature=Signature("00112233445566aa", bytes(range(64))))


def test_the_format_with_a_signature_is_frozen() -> None:
    data = entry.encode(SIGNED)
    assert first_line(data) == entry.line(SAMPLE) == entry.line(SIGNED) == first_line(entry.encode(SAMPLE))
    assert hashlib.sha256(data).hexdigest() == "2b366dcd28402d18b1cb2bafd10dc90e9f37316be48e5171830768bf65a146aa"
    assert entry.digest(data) != entry.digest(entry.encode(SAMPLE)), (
        "the next entry continues the one with the signature"
    )


def test_an_entry_is_one_line_and_another_with_its_signature() -> None:
    line, signed = record.unseal(entry.encode(SIGNED))
    for lines in ([line, line], [line, signed, signed], [signed, line], [signed], [line, b""]):
        with pytest.raises(FormatError):
            entry.decode(record.seal(lines), SAMPLE.key)


@given(st.binary(max_size=300) | st.dictionaries(text, text).map(lambda value: record.seal([record.encode(value)])))
def test_arbitrary_bytes_are_format_errors(data: bytes) -> None:
    with pytest.raises(FormatError):
        entry.decode(data, SAMPLE.key)
