"""Bundles: what was encoded is decoded and verified, and damage is noticed."""

from hashlib import sha256, shake_128

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import BLOCK, bundle, codec
from blockmap.format.bundle import Piece
from blockmap.format.digest import Digest, block_digests, chunk_digest
from blockmap.format.reading_list import ReadItem
from blockmap.store.packs import Packs, Sealer, compress

SALT = bytes(range(16))
NODES = [(Digest(b"n" * 32), b"inner node"), (Digest(b"m" * 32), b"leaf" * 50)]
READINGS = [ReadItem(0, 3, None, 0), ReadItem(70, 64, b"bin/sh", 5), ReadItem(1 << 39, 1, b"\xff", 0)]
GOLDEN = "8b6e5a83e852406498fc9691722cea8f66c2dee07611f200a77ae5672ee2302e"
Chunk = tuple[Digest, int, bytes]


def chunk(seed: int, blocks: int, mask: int, fill: bool = False) -> Chunk:
    content = bytes([seed % 256]) * (BLOCK * blocks) if fill else shake_128(bytes([seed])).digest(BLOCK * blocks)
    return chunk_digest(block_digests(content)), mask, content


def made(chunks: list[Chunk]) -> tuple[bytes, int]:
    parts, length = bundle.encode(NODES, chunks, READINGS, 1 << 30, SALT, Sealer().seal, compress)
    return b"".join(parts), length


CHUNKS = [chunk(1, 4, 0b1010), chunk(2, 64, (1 << 64) - 1, fill=True), chunk(3, 1, 1)]


def contents(data: bytes, length: int) -> tuple[list[bytes], list[bytes]]:
    """Returns the nodes, and the chunks with zeros for absent blocks; verifies all pieces."""
    head = Packs.open_bundle(data[:length])
    frames = [Packs.open_frame(head, at, data[own.offset : own.end]) for at, own in enumerate(head.frames)]
    nodes = [bytes(frames[own.frame][own.offset : own.offset + own.length]) for own in head.nodes]
    chunks = []
    for own in head.pieces:
        here = frames[own.frame][own.offset : own.offset + own.mask.bit_count() * BLOCK]
        assert bundle.is_good(own, here)
        chunks.append(bytes(bundle.spread(own, here)))
    return nodes, chunks


@given(st.integers(1, (1 << 16) - 1), st.integers(1, (1 << 16) - 1))
def test_parts_of_a_chunk_in_two_places_are_joined(one: int, two: int) -> None:
    name, _, content = chunk(7, 16, 0)
    whole, length = made([(name, one, content), chunk(8, 64, (1 << 64) - 1), (name, two, content)])
    head = Packs.open_bundle(whole[:length])
    parts = []
    for own in (head.pieces[0], head.pieces[2]):
        frame = Packs.open_frame(head, own.frame, whole[head.frames[own.frame].offset : head.frames[own.frame].end])
        parts += [own, frame[own.offset : own.offset + own.mask.bit_count() * BLOCK]]
    both, data = bundle.joined(*parts)  # type: ignore[arg-type]
    assert both.mask == one | two
    assert bytes(bundle.spread(both, data)) == expected((name, one | two, content))


def test_frames_behind_what_is_listed_are_told() -> None:
    listed = [chunk(1, 64, (1 << 64) - 1), chunk(2, 4, 0b101)]
    parts, length = bundle.encode(
        [], [*listed, chunk(3, 64, (1 << 64) - 1)], [ReadItem(0, 66, None, 0)], 1 << 30, SALT, Sealer().seal, compress
    )
    head = Packs.open_bundle(b"".join(parts)[:length])
    assert [own.frame for own in head.pieces] == [0, 1, 2]
    assert head.listed_frames == 2
    parts, length = bundle.encode([], listed, [ReadItem(0, 66, None, 0)], 1 << 30, SALT, Sealer().seal, compress)
    assert Packs.open_bundle(b"".join(parts)[:length]).listed_frames == 2, "all"


def expected(own: Chunk) -> bytes:
    _, mask, content = own
    blocks = range(len(content) // BLOCK)
    return b"".join(content[at * BLOCK : (at + 1) * BLOCK] if mask >> at & 1 else bytes(BLOCK) for at in blocks)


@settings(deadline=None)
@given(st.data())
def test_what_is_put_in_comes_out(data: st.DataObject) -> None:
    chunks = []
    for seed in range(data.draw(st.integers(0, 6))):
        blocks = data.draw(st.integers(1, 64))
        chunks.append(chunk(seed, blocks, data.draw(st.integers(1, (1 << blocks) - 1)), data.draw(st.booleans())))
    whole, length = made(chunks)
    head = Packs.open_bundle(whole[:length])
    assert head.end == len(whole)
    assert head.read_items == READINGS
    assert head.image_blocks == 1 << 30
    assert [own.node for own in head.nodes] == [name for name, _ in NODES]
    assert [(own.chunk, own.mask) for own in head.pieces] == [(name, mask) for name, mask, _ in chunks]
    assert contents(whole, length) == ([frame for _, frame in NODES], [expected(own) for own in chunks])
    assert bundle.measure(lambda start, end: whole[start:end]) == (len(whole), length)


def test_it_says_that_it_was_ported() -> None:
    for ported in (False, True):
        parts, length = bundle.encode(NODES, CHUNKS, READINGS, 1 << 30, SALT, Sealer().seal, compress, (), ported)
        whole = b"".join(parts)
        assert Packs.open_bundle(whole[:length]).ported is ported
        assert bundle.measure(lambda start, end, whole=whole: whole[start:end]) == (len(whole), length)  # type: ignore[misc]


def test_nothing_is_a_bundle_too() -> None:
    parts, length = bundle.encode([], [], [], 0, SALT, Sealer().seal, compress)
    whole = b"".join(parts)
    assert Packs.open_bundle(whole).end == length == len(whole)
    assert bundle.measure(lambda start, end: whole[start:end]) == (length, length)


def test_the_format_is_frozen() -> None:
    whole, length = made([CHUNKS[0], CHUNKS[2]])  # incompressible, so that no frame depends on zstd's release
    head = Packs.open_bundle(whole[:length])
    assert [(own.codec, own.stored) for own in head.frames] == [(codec.RAW, own.raw) for own in head.frames]
    entries, frames = 4 * 44, 16 * len(head.frames)
    at = 32 + entries + frames
    packed, listed = (int.from_bytes(whole[at + skip : at + skip + 4], "little") for skip in (8, 12))
    tables = whole[at : at + 8] + whole[at + 16 : length - 32 - packed]
    body = codec.decode(codec.ZSTD, whole[length - 32 - packed : length - 32], listed)
    frozen = b"".join((whole[: 32 + entries], tables, body, whole[length:]))
    assert sha256(frozen).hexdigest() == GOLDEN


def test_frames_follow_the_order_and_are_small() -> None:
    chunks = [chunk(at, 16, (1 << 16) - 1) for at in range(100)]
    whole, length = made(chunks)
    head = Packs.open_bundle(whole[:length])
    raws = [own.raw for own in head.frames]
    assert max(raws) == 64 << 10
    assert [own.frame for own in head.pieces] == sorted(own.frame for own in head.pieces)


@given(st.data())
def test_any_damage_of_the_head_is_noticed(data: st.DataObject) -> None:
    whole, length = made(CHUNKS)
    head = whole[:length]
    at = data.draw(st.integers(0, length - 1))
    byte = data.draw(st.integers(1, 255))
    for damaged in (head[:at] + bytes([head[at] ^ byte]) + head[at + 1 :], head[:at], head + b"\0"):
        with pytest.raises(FormatError):
            Packs.open_bundle(damaged)


def test_damage_of_a_block_or_of_an_absent_digest_is_noticed() -> None:
    whole, length = made(CHUNKS)
    own = Packs.open_bundle(whole[:length]).pieces[0]
    here = bytes(CHUNKS[0][2][BLOCK : 2 * BLOCK] + CHUNKS[0][2][3 * BLOCK :])
    assert bundle.is_good(own, here)
    assert not bundle.is_good(own, here[:-1] + bytes([here[-1] ^ 1]))
    assert not bundle.is_good(own, here[:BLOCK])
    assert not bundle.is_good(own._replace(absent=bytes(len(own.absent))), here)
    assert not bundle.is_good(own._replace(mask=0b0101), here)
    assert not bundle.is_good(Piece(CHUNKS[2][0], *own[1:]), here)


def forged(head: bytearray) -> bytes:
    """Returns the head with a correct seal."""
    return bytes(head[:-32]) + sha256(head[:-32]).digest()


@pytest.mark.parametrize(
    ("at", "value"),
    [(4, 2), (5, 1), (6, 2), (8, 6), (12, 0), (64, 9), (32 + 44 * 2 + 40, 1), (32 + 44 * 5, 1), (32 + 44 * 5 + 13, 1)],
)
def test_a_sealed_head_that_does_not_add_up_is_refused(at: int, value: int) -> None:
    whole, length = made(CHUNKS)
    head = bytearray(whole[:length])
    assert head[at] != value
    head[at] = value
    with pytest.raises(FormatError):
        Packs.open_bundle(forged(head))
