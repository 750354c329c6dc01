"""Records of OCI documents."""

import json
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import record
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.oci import DocumentRecord, decode, encode
from blockmap.format.tree import Root
from blockmap.format.version import Version, WriterLayout

VERSION = Digest(b"\5" * 32)


@given(st.binary(min_size=32, max_size=32).map(Digest), st.integers(1, 10**16 - 1), st.none() | st.binary(max_size=50))
def test_what_is_encoded_comes_back(version: Digest, number: int, index: bytes | None) -> None:
    made = DocumentRecord(version, number, index)
    assert decode(encode(made)) == made


def test_the_record_is_frozen() -> None:
    assert encode(DocumentRecord(VERSION, 1, b"{}")).split(b"\n")[0] == (
        b'{"format":1,"index":"e30=","number":1,"version":"' + b"05" * 32 + b'"}'
    )
    assert (
        encode(DocumentRecord(VERSION, 1)).split(b"\n")[0] == b'{"format":1,"number":1,"version":"' + b"05" * 32 + b'"}'
    )


@given(st.data())
def test_any_damage_is_noticed(data: st.DataObject) -> None:
    whole = encode(DocumentRecord(VERSION, 1))
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
        {"number": 10**16},
        {"number": True},
        {"number": "1"},
        {"version": "00"},
        {"version": 7},
        {"version": None},
        {"index": 5},
        {"index": "e"},
        {"index": ["e30="]},
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


MANIFEST, CONFIG = b'{"schemaVersion":2}', b'{"os":"linux"}'
OWN = Version(Root(ABSENT, 5), Root(ABSENT, 5), WriterLayout(0, 0), manifest=MANIFEST, config=CONFIG)


def digest(data: bytes) -> bytes:
    return sha256(data).digest()


def index(*manifests: bytes) -> bytes:
    return json.dumps({"manifests": [{"digest": f"sha256:{sha256(each).hexdigest()}"} for each in manifests]}).encode()


def test_a_document_fits_the_version_that_has_it() -> None:
    listed = index(b"{}", MANIFEST)
    assert DocumentRecord(OWN.name, 1).fits(digest(MANIFEST), OWN)
    assert DocumentRecord(OWN.name, 1).fits(digest(CONFIG), OWN)
    assert DocumentRecord(OWN.name, 1, listed).fits(digest(listed), OWN)


WRONG = [
    DocumentRecord(OWN.name, 1),
    DocumentRecord(OWN.name, 1, index(b"{}")),
    DocumentRecord(OWN.name, 1, MANIFEST),
    *(DocumentRecord(OWN.name, 1, data) for data in (b"", b"[]", b"null", b'{"manifests":5}', b'{"manifests":[5]}')),
    DocumentRecord(OWN.name, 1, b'{"manifests":[{"digest":' * 3 + b"[" * 100_000),
]


@pytest.mark.parametrize("record", WRONG, ids=range(len(WRONG)))
def test_a_document_that_does_not_fit(record: DocumentRecord) -> None:
    assert not record.fits(digest(index(MANIFEST)), OWN)
    assert record.index is None or record.index == MANIFEST or not record.fits(digest(record.index), OWN)
