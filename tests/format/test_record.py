"""Canonical JSON and its seal: one encoding, and nothing but FormatError for other bytes."""

import hashlib
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import record

text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=20,
)
objects = st.dictionaries(text, values, max_size=6)


@given(objects)
def test_what_is_encoded_is_decoded(value: dict[str, Any]) -> None:
    line = record.encode(value)
    assert record.decode(line) == value
    assert record.encode(record.decode(line)) == line
    assert line.isascii()
    assert b"\n" not in line


def test_the_encoding_is_fixed() -> None:
    value = {"b": [1, -2, None, True], "a": {"é": '\n"\\\x00'}, "": 1 << 70}
    expected = rb'{"":1180591620717411303424,"a":{"\u00e9":"\n\"\\\u0000"},"b":[1,-2,null,true]}'
    assert record.encode(value) == expected


@given(objects, st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert record.encode(dict(items)) == record.encode(value)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"null",
        b'"x"',
        b'{"a":1.0}',
        b'{"a":1e3}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a": 1}',
        b'{"a":1} ',
        b'{"a":1}\n',
        b' {"a":1}',
        b'{"b":1,"a":1}',
        b'{"a":1,"a":1}',
        b'{"a":01}',
        b'{"a":-0}',
        b'{"a":+1}',
        b'{"\\u0061":1}',
        '{"é":1}'.encode(),
        b'{"a":"\\u00E9"}',
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b'{"a":"\\/"}',
        b'\xef\xbb\xbf{"a":1}',
        b"\xff",
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' + b"[" * 50_000,
        b'{"a":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"a":' * 900 + b"1" + b"}" * 900,
    ],
    ids=lambda line: repr(line[:24]),
)
def test_other_encodings_are_refused(line: bytes) -> None:
    try:
        value = record.decode(line)
    except FormatError:
        return
    assert record.encode(value) == line
    assert line.startswith(b'{"a":{"a"'), "only nesting that this interpreter follows is let through"


@pytest.mark.parametrize(
    "value", [{"a": 1.0}, {"a": b"x"}, {"a": [{"b": 1.5}]}, {1: "x"}, {"a": {None: 1}}, {"a": "\ud800"}, {"a": {1}}]
)
def test_what_has_no_encoding_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        record.encode(value)


@given(st.binary(max_size=200))
@example(b"{}")
def test_arbitrary_bytes_are_format_errors_or_what_they_say(data: bytes) -> None:
    with suppress(FormatError):
        assert record.encode(record.decode(data)) == data
    with suppress(FormatError):
        assert record.seal(record.unseal(data)) == data


@given(st.lists(st.binary(max_size=50).filter(lambda line: b"\n" not in line), min_size=1, max_size=5))
def test_sealed_lines_come_back(lines: list[bytes]) -> None:
    assert record.unseal(record.seal(lines)) == lines


def test_the_seal_is_fixed() -> None:
    body = b'{"a":1}\n{}\n'
    assert record.seal([b'{"a":1}', b"{}"]) == body + hashlib.sha256(body).hexdigest().encode() + b"\n"


@given(st.data())
def test_no_flipped_bit_and_no_cut_gets_by(data: st.DataObject) -> None:
    sealed = record.seal([b'{"a":1}', b'{"b":[2]}'])
    at = data.draw(st.integers(0, len(sealed) - 1))
    flipped = bytearray(sealed)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(flipped), sealed[:at], sealed[at + 1 :], sealed + b"\n", sealed[:at] + b"x" + sealed[at:]):
        with pytest.raises(FormatError, match="damaged"):
            record.unseal(damaged)


@given(objects)
@example({"a": "x" * 100})
def test_records_are_bounded(value: dict[str, Any]) -> None:
    sealed = record.seal([record.encode(value)])
    assert record.unseal(sealed, len(sealed)) == [record.encode(value)]
    with pytest.raises(FormatError, match="too long"):
        record.unseal(sealed, len(sealed) - 1)


def test_a_version_with_large_documents_fits() -> None:
    line = record.encode({"config": "A" * (8 * 4 // 3 << 20), "manifest": "A" * (8 * 4 // 3 << 20)})
    assert record.unseal(record.seal([line])) == [line]
    with pytest.raises(FormatError, match="too long"):
        record.unseal(record.seal([b"x" * record.MAX_BYTES]))


def test_canonical_is_json() -> None:
    assert json.loads(record.encode({"a": [1, {"b": "é"}]})) == {"a": [1, {"b": "é"}]}
