"""Records of OCI documents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import record
from blockmap.format.digest import Digest
from blockmap.format.oci import decode, encode

VERSION = Digest(b"\5" * 32)


@given(st.binary(min_size=32, max_size=32).map(Digest), st.integers(1, 10**16))
def test_what_is_encoded_comes_back(version: Digest, number: int) -> None:
    assert decode(encode(version, number)) == (version, number)


def test_the_record_is_frozen() -> None:
    assert encode(VERSION, 1).split(b"\n")[0] == b'{"format":1,"number":1,"version":"' + b"05" * 32 + b'"}'


@given(st.data())
def test_any_damage_is_noticed(data: st.DataObject) -> None:
    whole = encode(VERSION, 1)
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(1, 255))
    for damaged in (whole[:at] + bytes([whole[at] ^ byte]) + whole[at + 1 :], whole[:at], whole + b"\n"):
        with pytest.raises(FormatError):
            decode(damaged)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"number": 0},
        {"number": True},
        {"number": "1"},
        {"version": "00"},
        {"version": 7},
        {"version": None},
    ],
)
def test_fields_of_the_wrong_kind_are_refused(change: dict[str, object]) -> None:
    value = {"format": 1, "number": 1, "version": VERSION.hex(), **change}
    with pytest.raises(FormatError):
        decode(record.seal([record.encode(value)]))


@pytest.mark.parametrize("lines", [[], [b""], [b"[]"], [b"{}"]])
def test_a_sealed_object_that_is_something_else_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(FormatError):
        decode(record.seal(lines))


def test_more_lines_are_refused() -> None:
    line = record.encode({"format": 1, "number": 1, "version": VERSION.hex()})
    with pytest.raises(FormatError):
        decode(record.seal([line, line]))
