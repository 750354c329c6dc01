"""Version records: names, contents and damage."""

import base64
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import record
from blockmap.format.digest import ABSENT, Digest, DigestKind, digest
from blockmap.format.placement import Placement
from blockmap.format.signature import Signature, first_line
from blockmap.format.tree import MAX_BLOCKS, Root
from blockmap.format.version import (
    MAX_RUN_BYTES,
    NodeRun,
    Version,
    WriterLayout,
    decode,
    decode_placement,
    encode,
    encode_placement,
)

PLACE = Placement(Digest(b"\1" * 32), 1, 100, 200, 300)
VERSION = Version(
    Root(Digest(b"\2" * 32), 5000, PLACE),
    Root(ABSENT, 5000),
    WriterLayout(1, 32),
    manifest=b'{"a": 1}\n',
    config=b"\xff\x00",
    parents=(Digest(b"\3" * 32),),
    author="Zoë",
    message="two\nlines",
    created="2020-01-01T00:00:00Z",
)
GOLDEN = "534cab41f4372c57a300da224010d3fd72a51a648d9031c96ec3f933658c715e"


def test_the_name_freezes_the_format() -> None:
    assert VERSION.name.hex() == GOLDEN


digests = st.binary(min_size=32, max_size=32).map(Digest)
numbers = st.integers(0, (1 << 32) - 1)
placements = st.none() | st.builds(Placement, digests, numbers, numbers, numbers, numbers)
runs = st.builds(
    lambda pack, start, length: NodeRun(pack, start, start + length),
    digests,
    st.integers(0, 1 << 20),
    st.integers(1, MAX_RUN_BYTES),
)
signatures = st.builds(Signature, st.binary(min_size=8, max_size=8).map(bytes.hex), st.binary(min_size=64, max_size=64))
texts = st.text(st.characters(exclude_categories=["Cs"]))


@st.composite
def versions(draw: st.DrawFn) -> Version:
    size = draw(st.integers(1, MAX_BLOCKS))
    roots = []
    for _ in range(2):
        name = draw(digests | st.just(ABSENT))
        roots.append(Root(name, size, None if name == ABSENT else draw(placements)))
    return Version(
        roots[0],
        roots[1],
        WriterLayout(draw(st.integers(0, 99)), draw(st.integers(0, 99))),
        draw(st.none() | st.binary()),
        draw(st.none() | st.binary()),
        tuple(draw(st.lists(digests, max_size=3))),
        draw(texts),
        draw(texts),
        draw(texts),
        draw(st.none() | runs),
        draw(st.none() | signatures),
    )


@given(versions())
def test_what_is_encoded_comes_back(version: Version) -> None:
    assert decode(encode(version), version.name) == version


GOLDEN_RECORD = "509b46f62859a146cdbf282dd0855fd15dcd2c1bf6ae0c920535df6e7794d66b"
GOLDEN_SIGNED = "2239f50b4a7e056c218e8066601333d8ff98dad5dfdd1eff4c58dd369172491c"


def test_records_with_and_without_a_signature_are_frozen() -> None:
    signed = replace(VERSION, signature=Signature("00112233445566aa", bytes(range(64))))
    assert signed.name == VERSION.name
    assert first_line(encode(signed)) == first_line(encode(VERSION)) == VERSION.line()
    assert sha256(encode(VERSION)).hexdigest() == GOLDEN_RECORD
    assert sha256(encode(signed)).hexdigest() == GOLDEN_SIGNED


def test_a_record_has_one_signature() -> None:
    line, places, signed = record.unseal(encode(replace(VERSION, signature=Signature("0" * 16, bytes(64)))))
    for lines in ([line, places, signed, signed], [line, signed], [line, signed, places], [line, places, b""]):
        with pytest.raises(FormatError):
            decode(record.seal(lines), VERSION.name)


def test_the_name_does_not_depend_on_where_things_are() -> None:
    moved = replace(VERSION, root=replace(VERSION.root, placement=None), run=NodeRun(PLACE.pack, 5, 9))
    assert moved.name == VERSION.name
    assert encode(moved) != encode(VERSION)
    assert replace(VERSION, message="other").name != VERSION.name
    assert replace(VERSION, root=replace(VERSION.root, size=5001)).name != VERSION.name


@given(st.data())
def test_any_damage_is_noticed(data: st.DataObject) -> None:
    whole = encode(VERSION)
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(1, 255))
    for damaged in (whole[:at] + bytes([whole[at] ^ byte]) + whole[at + 1 :], whole[:at], whole + whole[at:]):
        with pytest.raises(FormatError):
            decode(damaged, VERSION.name)


def test_another_version_is_refused() -> None:
    with pytest.raises(FormatError, match="not the one named"):
        decode(encode(replace(VERSION, message="other")), VERSION.name)


def forged(**changes: object) -> tuple[bytes, Digest]:
    """Returns a record with other fields and a correct seal, and its name; a field that is `...` is left out."""
    value = {**record.decode(VERSION.line()), **changes}
    line = record.encode({key: item for key, item in value.items() if item is not ...})
    places = record.encode({"root": encode_placement(PLACE), "extra": None})
    return record.seal([line, places]), digest(DigestKind.VERSION, len(line), line)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 0},
        {"size": MAX_BLOCKS + 1},
        {"size": "1"},
        {"size": True},
        {"size": ...},
        {"root": "xyz"},
        {"root": 7},
        {"root": None},
        {"extra": ["a"]},
        {"layout": None},
        {"layout": {"writer": "x", "threshold": 1}},
        {"layout": {"writer": 1}},
        {"manifest": "not base64"},
        {"manifest": 7},
        {"config": []},
        {"parents": None},
        {"parents": ["00"]},
        {"parents": [7]},
        {"author": None},
        {"message": 7},
        {"created": ["x"]},
    ],
)
def test_fields_of_the_wrong_kind_are_refused(changes: dict[str, object]) -> None:
    data, name = forged(**changes)
    with pytest.raises(FormatError):
        decode(data, name)


def test_a_newer_format_says_upgrade() -> None:
    with pytest.raises(FormatError, match="upgrade"):
        decode(*forged(format=2))


def test_a_document_that_is_not_canonical_base64_does_not_pass_for_another() -> None:
    data, name = forged(manifest=base64.b64encode(b"x").decode().replace("=", "") + "==")
    assert decode(data, name).manifest == b"x"


@given(placements)
def test_placements_come_back(place: Placement | None) -> None:
    assert decode_placement(encode_placement(place)) == place


@pytest.mark.parametrize(
    "change",
    [{"codec": -1}, {"offset": 1 << 32}, {"stored": True}, {"raw": "1"}, {"pack": "00"}, {"pack": 3}, {"more": 1}],
)
def test_damaged_placements_are_refused(change: dict[str, object]) -> None:
    value = {**(encode_placement(PLACE) or {}), **change}
    with pytest.raises(FormatError):
        decode_placement(value)
    with pytest.raises(FormatError):
        decode_placement([])
