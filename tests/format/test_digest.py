"""Digests: the bytes that they are taken over, written out a second time."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import BLOCK
from blockmap.format.digest import (
    ABSENT,
    HEADER,
    Digest,
    DigestKind,
    block_digests,
    chunk_digest,
    digest,
    from_hex,
    header,
)

contents = st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=64).map(
    lambda seeds: b"".join((seed * BLOCK)[:BLOCK] for seed in seeds)
)


@given(contents)
def test_a_chunk_is_named_by_the_digests_of_its_blocks(data: bytes) -> None:
    blocks = [hashlib.sha256(data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK)]
    head = b"bmap" + bytes([1, 1, 0, 0]) + struct.pack("<II", len(blocks), 0)
    expected = hashlib.sha256(head + b"".join(blocks)).digest()
    for form in (data, memoryview(data)):
        assert block_digests(form) == b"".join(blocks)
        assert chunk_digest(block_digests(form)) == expected


@given(st.sampled_from(DigestKind), st.integers(0, (1 << 32) - 1), st.integers(0, 4), st.binary(max_size=99))
def test_a_digest_covers_header_and_body(kind: DigestKind, count: int, level: int, body: bytes) -> None:
    head = struct.pack("<4sBBBBII", b"bmap", kind, 1, level, 0, count, 0)
    assert header(kind, count, level) == head
    assert digest(kind, count, body, level) == hashlib.sha256(head + body).digest()


def test_no_two_kinds_share_a_name() -> None:
    body = bytes(64)
    names = {digest(kind, count, body, level) for kind in DigestKind for count in (1, 2) for level in (0, 1)}
    assert len(names) == 12
    assert chunk_digest(body) == digest(DigestKind.CHUNK, 2, body)
    assert HEADER.size == 16
    assert [kind.value for kind in DigestKind] == [1, 2, 3]


@given(st.binary(min_size=32, max_size=32))
def test_hexadecimal_comes_back(raw: bytes) -> None:
    assert from_hex(raw.hex()) == Digest(raw)
    assert (from_hex(raw.hex()) == ABSENT) == (raw == bytes(32))


@pytest.mark.parametrize(
    "text", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, " " + "0" * 63, "0" * 63 + "\n", "０" * 64]
)
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(FormatError, match="64 lower-case hexadecimal digits"):
        from_hex(text)


@given(st.text(max_size=80) | st.text("0123456789abcdefF \n", min_size=62, max_size=66))
def test_any_text_is_a_digest_or_a_mistake(text: str) -> None:
    try:
        found = from_hex(text)
    except FormatError:
        return
    assert found.hex() == text
