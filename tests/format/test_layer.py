"""Layer records: decoding reverses encoding, damage is noticed, and no length is trusted."""

import struct
from hashlib import sha256

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format.digest import Digest
from blockmap.format.layer import LayerRecord, decode, encode
from blockmap.store.packs import expand_stream

CHAIN, VERSION = bytes(range(32)), Digest(b"\5" * 32)
HEADERS = b"header" * 1000
PACKED = zstandard.ZstdCompressor().compress(HEADERS)
RECORD = LayerRecord(CHAIN, VERSION, 3, len(HEADERS), PACKED)


@given(st.binary(max_size=3000), st.integers(0, (1 << 32) - 1))
def test_what_is_encoded_comes_back(headers: bytes, number: int) -> None:
    made = LayerRecord(CHAIN, VERSION, number, len(headers), zstandard.ZstdCompressor().compress(headers))
    found = decode(encode(made), CHAIN)
    assert found == made
    assert found.headers(expand_stream) == headers


def test_headers_that_were_compressed_as_a_stream_come_back() -> None:
    stream = zstandard.ZstdCompressor().compressobj()
    packed = b"".join(stream.compress(HEADERS[at : at + 7]) for at in range(0, len(HEADERS), 7)) + stream.flush()
    assert RECORD._replace(packed=packed).headers(expand_stream) == HEADERS


def test_the_head_is_frozen() -> None:
    head = encode(RECORD)[:84]
    assert head == b"bmly\x01\0\0\0" + CHAIN + VERSION + struct.pack("<IQ", 3, len(HEADERS))


@given(st.data())
def test_any_damage_is_noticed(data: st.DataObject) -> None:
    whole = encode(RECORD)
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(1, 255))
    for damaged in (whole[:at] + bytes([whole[at] ^ byte]) + whole[at + 1 :], whole[:at], whole + b"\0"):
        with pytest.raises(FormatError):
            decode(damaged, CHAIN)


@pytest.mark.parametrize(
    "changed",
    [
        RECORD._replace(raw=len(HEADERS) - 1),
        RECORD._replace(raw=len(HEADERS) + 1),
        RECORD._replace(raw=1 << 40),
        RECORD._replace(packed=PACKED[:-1]),
        RECORD._replace(packed=b""),
        RECORD._replace(packed=b"not zstd at all"),
        RECORD._replace(packed=zstandard.ZstdCompressor().compress(bytes(1 << 24)), raw=5),
    ],
)
def test_a_record_is_not_believed_about_its_length(changed: LayerRecord) -> None:
    with pytest.raises(FormatError):
        decode(encode(changed), CHAIN).headers(expand_stream)


def test_no_headers_at_all() -> None:
    made = RECORD._replace(raw=0, packed=zstandard.ZstdCompressor().compress(b""))
    assert made.headers(expand_stream) == b""


def test_the_record_of_another_stack_and_format_is_refused() -> None:
    with pytest.raises(FormatError, match="not the record"):
        decode(encode(RECORD), bytes(32))
    data = b"bmly\x02" + encode(RECORD)[5:-32]
    with pytest.raises(FormatError, match="known to this release"):
        decode(data + sha256(data).digest(), CHAIN)
