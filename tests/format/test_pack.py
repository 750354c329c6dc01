"""Packs: frames are where the head says, the head has its name, and no count is trusted."""

import struct
import tracemalloc
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format.digest import Digest
from blockmap.format.pack import (
    TARGET_BYTES,
    Pack,
    PackedFrame,
    PackHead,
    PackKind,
    head_bytes,
    head_length,
    parse_head,
    seal,
)
from blockmap.format.placement import Placement

SALT = bytes(range(16))
digests = st.binary(min_size=32, max_size=32).map(Digest)
frames = st.lists(
    st.builds(PackedFrame, digests, st.integers(0, 255), st.binary(max_size=50), st.integers(0, (1 << 32) - 1)),
    max_size=8,
)
kinds = st.sampled_from([PackKind.CHUNKS, PackKind.NODES])
SAMPLE = [PackedFrame(Digest(bytes([at]) * 32), at % 2, bytes([at]) * (10 + at), 100 + at) for at in range(3)]


def stored(pack: Pack) -> bytes:
    return b"".join(pack.parts)


@given(kinds, frames, st.binary(min_size=16, max_size=16))
def test_every_frame_is_found(kind: PackKind, content: list[PackedFrame], salt: bytes) -> None:
    made = seal(kind, content, salt)
    data = stored(made)
    head = parse_head(data, made.name)
    assert (head.kind, head.length, head.end) == (kind, head_bytes(len(content)), len(data))
    assert head.entries == list(zip((frame.digest for frame in content), made.placements, strict=True))
    for frame, place in zip(content, made.placements, strict=True):
        assert data[place.offset : place.offset + place.stored] == frame.data
        assert (place.pack, place.codec, place.raw) == (made.name, frame.codec, frame.raw)
    assert parse_head(data[: head.length], made.name) == head, "the head alone is enough"
    assert head_length(data[:32]) == head.length
    assert made.name == sha256(data[: head.length]).digest()


def test_the_layout_is_frozen() -> None:
    data = stored(seal(PackKind.NODES, SAMPLE[1:], SALT))
    body = b"\1" * 11 + b"\2" * 12
    assert data == b"".join(
        (
            b"bmpk\x01\x02\0\0" + struct.pack("<II", 2, 2) + SALT,
            b"\1" * 32 + struct.pack("<III", 0, 0, 101),
            b"\2" * 32 + struct.pack("<III", 1, 0, 102),
            struct.pack("<IIIB3x", 152, 11, 101, 1),
            struct.pack("<IIIB3x", 163, 12, 102, 0),
            body,
        )
    )


def test_a_salt_makes_another_name() -> None:
    one, two = seal(PackKind.CHUNKS, SAMPLE, SALT), seal(PackKind.CHUNKS, SAMPLE, bytes(16))
    assert one.name != two.name
    assert [place.offset for place in one.placements] == [place.offset for place in two.placements]


def test_any_damage_of_the_head_is_noticed() -> None:
    made = seal(PackKind.CHUNKS, SAMPLE, SALT)
    data = stored(made)
    length = head_bytes(len(SAMPLE))
    for at in range(length):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(FormatError):
            parse_head(bytes(damaged), made.name)
        with pytest.raises(FormatError):
            parse_head(data[:at], made.name)


def forged(**changes: Any) -> tuple[bytes, Digest]:
    """Returns a head of one chunk with other fields, and the name that matches it."""
    of: dict[str, Any] = {
        "magic": b"bmpk", "version": 1, "kind": 1, "zero": 0, "entries": 1, "frames": 1, "frame": 0, "offset": 0,
        "length": 100, "at": 92, "stored": 50, "raw": 100, "codec": 0, "reserved": bytes(3), **changes,
    }  # fmt: skip
    data = b"".join(
        (
            struct.pack("<4sBBHII", *(of[k] for k in ("magic", "version", "kind", "zero", "entries", "frames"))) + SALT,
            bytes(32) + struct.pack("<III", of["frame"], of["offset"], of["length"]),
            struct.pack("<IIIB3s", of["at"], of["stored"], of["raw"], of["codec"], of["reserved"]),
        )
    )
    return data, Digest(sha256(data).digest())


def test_a_forged_head_is_well_made() -> None:
    data, name = forged()
    assert parse_head(data, name) == PackHead(
        PackKind.CHUNKS, [(Digest(bytes(32)), Placement(name, 0, 92, 50, 100))], 92, 142
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"magic": b"bmap"},
        {"version": 0},
        {"version": 2},
        {"kind": 0},
        {"kind": PackKind.BUNDLE},
        {"kind": 4},
        {"zero": 1},
        {"entries": 2},
        {"entries": 0},
        {"frames": 0xFFFFFFFF, "entries": 0xFFFFFFFF},
        {"frames": 0, "entries": 0},
        {"frame": 1},
        {"offset": 1},
        {"length": 99},
        {"raw": 99},
        {"at": 91},
        {"at": 0},
        {"reserved": b"\0\0\1"},
    ],
    ids=str,
)
def test_heads_that_do_not_add_up_are_refused(changes: dict[str, Any]) -> None:
    data, name = forged(**changes)
    with pytest.raises(FormatError):
        parse_head(data, name)


def test_entries_may_be_in_another_order_than_frames() -> None:
    data = stored(seal(PackKind.CHUNKS, SAMPLE, SALT))
    entries = [data[at : at + 44] for at in range(32, 32 + 44 * 3, 44)]
    length = head_bytes(3)
    swapped = data[:32] + b"".join(reversed(entries)) + data[32 + 44 * 3 :]
    head = parse_head(swapped, Digest(sha256(swapped[:length]).digest()))
    assert head.end == len(data)
    assert [name for name, _ in head.entries] == [frame.digest for frame in reversed(SAMPLE)]


def test_counts_cost_nothing() -> None:
    data, _ = forged(entries=0x7FFFFFFF, frames=0x7FFFFFFF)
    most = (TARGET_BYTES - 32) // 60
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="does not add up"):
            head_length(data)
        assert head_length(forged(entries=most, frames=most)[0]) <= TARGET_BYTES
        with pytest.raises(FormatError, match="only 92 are there"):
            parse_head(forged(entries=most, frames=most)[0], Digest(bytes(32)))
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=31))
def test_less_than_a_head_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="too short"):
        head_length(data)
