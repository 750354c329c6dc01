"""File maps: decoding reverses encoding, and damage is noticed."""

import struct
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import codec
from blockmap.format.digest import Digest
from blockmap.format.filemap import MAX_BODY, MAX_PATH, File, decode, encode
from blockmap.store.packs import body_stream, expand

ROOT = Digest(bytes(range(32)))
runs = st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1)), max_size=3)
files = st.builds(File, st.binary(max_size=30), st.integers(0, (1 << 64) - 1), runs)
SAMPLE = [File(b"a", 5000, [(7, 2)]), File(b"b/\xff", 0, []), File(b"c" * MAX_PATH, 1, [(9, 1), (1 << 40, 3)])]
GOLDEN = "e3b6ceeced987befa4f8b11a0d074c214d0a8c70208014e8d953940e805f0051"


@given(st.lists(files, max_size=5))
def test_what_is_encoded_comes_back(found: list[File]) -> None:
    assert list(decode(encode(ROOT, found, body_stream), ROOT, expand)) == found


def test_the_body_is_frozen() -> None:
    data = encode(ROOT, SAMPLE, body_stream)
    raw = int.from_bytes(data[40:44], "little")
    body = codec.decode(codec.ZSTD, data[44:-32], raw)
    assert data[:40] == b"bmfm\x01\0\0\0" + ROOT
    assert sha256(body).hexdigest() == GOLDEN


@given(st.data())
def test_any_damage_is_noticed(data: st.DataObject) -> None:
    whole = encode(ROOT, SAMPLE, body_stream)
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(1, 255))
    for damaged in (whole[:at] + bytes([whole[at] ^ byte]) + whole[at + 1 :], whole[:at], whole + b"\0"):
        with pytest.raises(FormatError):
            list(decode(damaged, ROOT, expand))


def forged(body: bytes, raw: int | None = None) -> bytes:
    """Returns a file map with a correct seal."""
    head = struct.pack("<4sB3s32sI", b"bmfm", 1, bytes(3), ROOT, len(body) if raw is None else raw)
    data = head + codec.Encoder().compress(body)
    return data + sha256(data).digest()


@given(st.data())
def test_a_body_that_ends_early_is_refused(data: st.DataObject) -> None:
    body = struct.pack("<HIQ", 3, 2, 10) + b"abc" + bytes(24)
    assert len(list(decode(forged(body), ROOT, expand))) == 1
    length = data.draw(st.integers(1, len(body) - 1))
    with pytest.raises(FormatError):
        list(decode(forged(body[:length]), ROOT, expand))


def test_a_body_is_not_believed_about_its_length() -> None:
    body = struct.pack("<HIQ", 0, 0xFFFFFFFF, 10)
    for data in (forged(body), forged(body, len(body) + 1), forged(body, MAX_BODY + 1), forged(bytes(1000), 10)):
        with pytest.raises(FormatError):
            list(decode(data, ROOT, expand))


def test_the_map_of_another_volume_is_refused() -> None:
    with pytest.raises(FormatError, match="not the file map"):
        list(decode(encode(ROOT, [], body_stream), Digest(bytes(32)), expand))
