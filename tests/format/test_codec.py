"""Frames: decoding reverses encoding, and no claim about a length is trusted."""

import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import codec
from blockmap.format.codec import LEVEL, RAW, ZSTD, Encoder, decode
from tests.image.builder import bulk

contents = st.binary(max_size=300) | st.builds(
    lambda seed, times: seed * times, st.binary(max_size=30), st.integers(0, 4000)
)


def zstd(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL, **options).compress(data)  # type: ignore[arg-type]


@given(contents)
def test_what_is_encoded_comes_back(data: bytes) -> None:
    encoder = Encoder()
    for form in (data, memoryview(data)):
        used, stored = encoder.encode(form)
        assert decode(used, stored, len(data)) == data
        assert decode(used, memoryview(stored), len(data)) == data
        assert decode(ZSTD, encoder.compress(form), len(data)) == data


def test_what_does_not_shrink_is_stored_raw() -> None:
    noise, text = bulk(1, 100_000), b"lorem ipsum " * 5000
    encoder = Encoder()
    assert encoder.encode(noise)[0] == RAW
    assert bytes(encoder.encode(noise)[1]) == noise
    assert encoder.encode(text)[0] == ZSTD
    sizes = [
        (len(encoder.compress(data)), data) for data in (noise[: 100_000 - n] + bytes(n) for n in range(0, 9000, 500))
    ]
    assert {encoder.encode(data)[0] for _, data in sizes} == {RAW, ZSTD}
    for packed, data in sizes:
        assert (encoder.encode(data)[0] == ZSTD) == (packed < 0.97 * len(data))


@pytest.mark.parametrize("used", [2, 15, 16, 31, 255, -1])
def test_codecs_of_later_releases_say_upgrade(used: int) -> None:
    with pytest.raises(FormatError, match=f"codec {used} is not known.*upgrade"):
        decode(used, b"x", 1)


DATA = b"0123456789" * 500
FRAME = zstd(DATA)
NO_SIZE = zstd(DATA, write_content_size=False)


@pytest.mark.parametrize(
    ("used", "stored", "raw"),
    [
        (RAW, DATA, len(DATA) - 1),
        (RAW, DATA, len(DATA) + 1),
        (RAW, b"", 1),
        (RAW, b"x", 0),
        (ZSTD, FRAME, len(DATA) - 1),
        (ZSTD, FRAME, len(DATA) + 1),
        (ZSTD, FRAME, 0),
        (ZSTD, FRAME + b"\0", len(DATA)),
        (ZSTD, FRAME + FRAME, len(DATA)),
        (ZSTD, FRAME + FRAME, 2 * len(DATA)),
        (ZSTD, FRAME + zstd(b""), len(DATA)),
        (ZSTD, NO_SIZE, len(DATA)),
        (ZSTD, DATA, len(DATA)),
        (ZSTD, b"", 0),
        (ZSTD, b"", 5),
        (ZSTD, b"\x28\xb5\x2f\xfd", 5),
        (ZSTD, b"\x50\x2a\x4d\x18\x05\0\0\0hello", 0),
        (ZSTD, b"\x50\x2a\x4d\x18\x05\0\0\0hello" + FRAME, len(DATA)),
    ],
)
def test_frames_that_are_not_what_was_recorded(used: int, stored: bytes, raw: int) -> None:
    with pytest.raises(FormatError):
        decode(used, stored, raw)


def test_every_cut_is_noticed() -> None:
    for length in range(len(FRAME)):
        with pytest.raises(FormatError):
            decode(ZSTD, FRAME[:length], len(DATA))


def claiming(frame: bytes, size: int) -> bytes:
    """Returns a frame whose header claims another size of its content, in a field of four bytes."""
    assert frame[4] >> 6 == 2, "the field has four bytes"
    at = 5 if frame[4] >> 5 & 1 else 6
    return frame[:at] + size.to_bytes(4, "little") + frame[at + 4 :]


BOMB = zstd(bytes(1 << 28))


@pytest.mark.parametrize(
    ("stored", "raw"),
    [
        (BOMB, 1 << 18),
        (claiming(BOMB, 1 << 18), 1 << 18),
        (claiming(BOMB, 1), 1),
        (claiming(zstd(bytes(1 << 20)), 1 << 31), 1 << 18),
        (zstd(bytes(1 << 28), write_content_size=False), 1 << 18),
    ],
    ids=["honest", "claims what was recorded", "claims a byte", "claims more", "says nothing"],
)
def test_bombs_take_no_memory(stored: bytes, raw: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            decode(ZSTD, stored, raw)
        assert tracemalloc.get_traced_memory()[1] < raw + (1 << 16)
    finally:
        tracemalloc.stop()


def test_empty_content() -> None:
    assert decode(RAW, b"", 0) == decode(ZSTD, zstd(b""), 0) == b""
    assert codec.Encoder().encode(b"") == (RAW, b"")
