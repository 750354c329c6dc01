"""Nodes: decoding reverses encoding, placements are advice, and every invariant is checked."""

import hashlib
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format.chunker import SPAN
from blockmap.format.digest import ABSENT, Digest, DigestKind, digest
from blockmap.format.extent import Extent, coalesce
from blockmap.format.node import FANOUT, MAX_LEVEL, MAX_NODE_BYTES, Inner, Leaf, Node, decode, encode, leaf
from blockmap.format.placement import Placement
from tests.format.trees import CHUNKS, PLACES, as_map, blocks_of, maps, place_of

PACK = Digest(b"\7" * 32)


def made_leaf(extents: list[Extent], base: int = 0) -> Leaf:
    made = leaf(coalesce(extents), base, PLACES)
    assert made is not None
    return made


leaf_maps = maps(SPAN, with_zeros=False).filter(bool)
names = st.binary(min_size=32, max_size=32).map(Digest).filter(lambda name: name != ABSENT)
small = st.integers(0, (1 << 32) - 1)
places = st.builds(Placement, st.sampled_from([ABSENT, PACK]) | names, st.integers(0, 255), small, small, small)


@st.composite
def inner_nodes(draw: st.DrawFn) -> Inner:
    slots = sorted(draw(st.sets(st.integers(0, FANOUT - 1), min_size=1, max_size=12)))
    children = [draw(names) for _ in slots]
    return Inner(draw(st.integers(1, MAX_LEVEL)), slots, children, [draw(places) for _ in slots])


def here(place: Placement | None) -> Placement | None:
    """Returns a placement as a reader of `PACK` sees it."""
    return place._replace(pack=PACK) if place and place.pack == ABSENT else place


@given(leaf_maps, st.data())
def test_a_leaf_comes_back(extents: list[Extent], data: st.DataObject) -> None:
    made = made_leaf(extents)
    made.check()
    made = made.with_placements([data.draw(places) for _ in made.chunks])
    found = decode(encode(made), PACK, made.digest)
    assert isinstance(found, Leaf)
    found.check()
    assert found.extents() == as_map(blocks_of(extents))
    assert (found.content, found.digest) == (made.content, made.digest)
    assert found.placements == [here(place) for place in made.placements]


@given(inner_nodes())
def test_an_inner_node_comes_back(made: Inner) -> None:
    made.check()
    found = decode(encode(made), PACK, made.digest)
    assert isinstance(found, Inner)
    assert (found.level, list(found.slots), found.children) == (made.level, made.slots, made.children)
    assert found.placements == [here(place) for place in made.placements]
    assert (found.content, found.digest) == (made.content, made.digest)
    for slot in range(FANOUT):
        at = made.slots.index(slot) if slot in made.slots else None
        assert found.child(slot) == (None if at is None else (made.children[at], here(made.placements[at])))


def test_a_full_leaf_of_single_blocks_fits() -> None:
    chunks = [Digest(hashlib.sha256(str(at).encode()).digest()) for at in range(SPAN)]
    made = leaf([Extent(at, 1, chunk, 1, 0) for at, chunk in enumerate(chunks)], 0, {})
    assert made is not None
    made = made.with_placements([place_of(chunk) for chunk in chunks])
    frame = encode(made)
    assert len(frame) <= MAX_NODE_BYTES
    found = decode(frame, PACK, made.digest)
    assert isinstance(found, Leaf)
    assert found.chunks == chunks
    assert found.placements == made.placements


@given(leaf_maps, st.integers(0, 1 << 27))
def test_a_leaf_does_not_know_where_its_span_is(extents: list[Extent], span: int) -> None:
    base = span * SPAN
    moved = made_leaf([extent._replace(start=extent.start + base) for extent in extents], base)
    assert moved.digest == made_leaf(extents).digest
    assert moved.extents(base)[0].start == extents[0].start + base


def test_a_leaf_of_nothing_is_none() -> None:
    assert leaf([], 0, {}) is None
    assert leaf([Extent(0, 4096, None, 0, 0)], 0, {}) is None


@given(inner_nodes(), st.data())
def test_placements_are_not_in_the_digest(made: Inner, data: st.DataObject) -> None:
    other = made.with_placements([data.draw(places) for _ in made.children])
    assert other.digest == made.digest
    assert decode(encode(other), PACK, made.digest).placements == [here(place) for place in other.placements]


def test_what_is_not_stored_cannot_be_encoded() -> None:
    made = made_leaf([Extent(0, 1, *CHUNKS[0], 0)])
    with pytest.raises(FormatError, match=f"refers to {CHUNKS[0][0].hex()}"):
        encode(made.with_placements([None]))


def test_the_layout_of_a_leaf_is_frozen() -> None:
    (one, blocks), (two, others) = CHUNKS[8], CHUNKS[9]
    made = made_leaf([Extent(3, 2, one, blocks, 0), Extent(9, 1, two, others, 6), Extent(4095, 1, one, blocks, 63)])
    made = made.with_placements([Placement(PACK, 1, 5, 6, 7), Placement(ABSENT, 0, 8, 9, 10)])
    content = struct.pack("<HHH HHH HHH BBB", 3, 9, 4095, 2, 1, 1, 0, 1, 0, 0, 6, 63) + one + two + bytes([63, 6])
    head = struct.pack("<4sBBBBII", b"bmap", 2, 1, 0, 0, 3, 0)
    tail = struct.pack("<I", 2) + PACK + ABSENT + struct.pack("<HBBIII HBBIII", 0, 1, 0, 5, 6, 7, 1, 0, 0, 8, 9, 10)
    assert encode(made) == head + content + tail
    assert made.digest == hashlib.sha256(head + content).digest()


def test_the_layout_of_an_inner_node_is_frozen() -> None:
    made = Inner(2, [1, 255], [CHUNKS[1][0], CHUNKS[0][0]], [Placement(PACK, 1, 5, 6, 7), Placement(PACK, 0, 8, 9, 10)])
    content = bytes([1, 255]) + CHUNKS[1][0] + CHUNKS[0][0]
    head = struct.pack("<4sBBBBII", b"bmap", 2, 1, 2, 0, 2, 0)
    tail = struct.pack("<I", 1) + PACK + struct.pack("<HBBIII HBBIII", 0, 1, 0, 5, 6, 7, 0, 0, 0, 8, 9, 10)
    assert encode(made) == head + content + tail
    assert made.digest == hashlib.sha256(head + content).digest()


# --- check

ONE, TWO = CHUNKS[8], CHUNKS[9]  # 64 and 7 blocks
VALID = made_leaf([Extent(0, 5, *ONE, 0), Extent(5, 2, *TWO, 1), Extent(9, 5, *ONE, 5)])


def changed(at: str, value: Any) -> Leaf:
    parts = {
        "starts": VALID.starts, "lengths": VALID.lengths, "index": VALID.index, "first": VALID.first,
        "chunks": VALID.chunks, "blocks": VALID.blocks, "placements": VALID.placements,
    }  # fmt: skip
    parts[at] = np.array(value, dtype=parts[at].dtype) if isinstance(parts[at], np.ndarray) else value
    return Leaf(**parts)  # type: ignore[arg-type]


BAD_LEAVES = [
    ("starts", [0, 4, 9]),
    ("starts", [9, 5, 0]),
    ("starts", [0, 5, 4092]),
    ("starts", [0, 5, 65535]),
    ("lengths", [5, 0, 5]),
    ("lengths", [6, 2, 5]),
    ("lengths", [5, 2, 60]),
    ("index", [0, 1, 1]),
    ("index", [1, 0, 1]),
    ("index", [0, 2, 1]),
    ("index", [0, 0, 0]),
    ("first", [0, 6, 5]),
    ("first", [0, 1, 255]),
    ("chunks", [ONE[0], ONE[0]]),
    ("chunks", [ONE[0], ABSENT]),
    ("chunks", [ONE[0]]),
    ("chunks", [*VALID.chunks, CHUNKS[0][0]]),
    ("blocks", [0, TWO[1]]),
    ("blocks", [65, TWO[1]]),
    ("blocks", [ONE[1], 2]),
    ("blocks", [ONE[1]]),
    ("placements", [None]),
]


@pytest.mark.parametrize(("at", "value"), BAD_LEAVES, ids=str)
def test_check_of_a_leaf(at: str, value: list[Any]) -> None:
    VALID.check()
    with pytest.raises(FormatError):
        changed(at, value).check()


def test_check_wants_chunks_in_order_of_first_use() -> None:
    made = made_leaf([Extent(9 * at, 1, *CHUNKS[at], 0) for at in range(3)])
    made.check()
    made.index = np.array([0, 2, 1], dtype=np.uint16)
    with pytest.raises(FormatError, match="order of first use"):
        made.check()


def test_check_wants_neighbours_coalesced() -> None:
    cut = leaf([Extent(0, 5, *ONE, 0), Extent(5, 2, *ONE, 5)], 0, {})
    assert cut is not None
    with pytest.raises(FormatError, match="coalesced"):
        cut.check()


@pytest.mark.parametrize(
    "made",
    [
        Inner(0, [1], [PACK], [None]),
        Inner(MAX_LEVEL + 1, [1], [PACK], [None]),
        Inner(1, [], [], []),
        Inner(1, [1, 2], [PACK], [None]),
        Inner(1, [1], [PACK], []),
        Inner(1, [1, 1], [PACK, PACK], [None, None]),
        Inner(1, [2, 1], [PACK, PACK], [None, None]),
        Inner(1, [1], [ABSENT], [None]),
    ],
    ids=lambda made: f"{made.level} {made.slots}",
)
def test_check_of_an_inner_node(made: Inner) -> None:
    with pytest.raises(FormatError):
        made.check()


# --- decode


def forge(content: bytes, count: int, level: int, tail: bytes) -> tuple[bytes, Digest]:
    """Returns a frame whose header and name match any content."""
    head = struct.pack("<4sBBBBII", b"bmap", 2, 1, level, 0, count, 0)
    return head + content + tail, digest(DigestKind.NODE, count, content, level)


LEAF_FRAME = encode(VALID)
LEAF_TAIL = LEAF_FRAME[16 + len(VALID.content) :]
INNER = Inner(2, [0, 255], [CHUNKS[0][0], CHUNKS[1][0]], [PLACES[CHUNKS[0][0]], PLACES[CHUNKS[1][0]]])
INNER_FRAME = encode(INNER)
INNER_TAIL = INNER_FRAME[16 + len(INNER.content) :]


@pytest.mark.parametrize(("at", "value"), BAD_LEAVES[:-1], ids=str)
def test_decode_checks_what_is_named_well(at: str, value: list[Any]) -> None:
    bad = changed(at, value)
    with pytest.raises(FormatError):
        decode(*with_pack(forge(bad.content, 3, 0, LEAF_TAIL)))


def with_pack(forged: tuple[bytes, Digest]) -> tuple[bytes, Digest, Digest]:
    return forged[0], PACK, forged[1]


@pytest.mark.parametrize("made", [VALID, INNER], ids=["leaf", "inner"])
def test_any_damage_is_noticed(made: Node) -> None:
    """Any flipped bit of header and content is noticed; placements are advice, and may still parse."""
    frame, named = encode(made), 16 + len(made.content)
    for at in range(len(frame)):
        for bit in range(8):
            damaged = bytearray(frame)
            damaged[at] ^= 1 << bit
            try:
                found = decode(bytes(damaged), PACK, made.digest)
            except FormatError:
                continue
            assert at >= named
            assert found.content == made.content
    for length in range(len(frame)):
        with pytest.raises(FormatError):
            decode(frame[:length], PACK, made.digest)
    with pytest.raises(FormatError):
        decode(frame + b"\0", PACK, made.digest)


def test_another_node_is_refused() -> None:
    with pytest.raises(FormatError, match="not the one named"):
        decode(LEAF_FRAME, PACK, INNER.digest)


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0), (4, 1), (4, 3), (5, 0), (5, 2), (6, MAX_LEVEL + 1), (7, 1), (8, 0), (11, 1), (12, 1), (15, 1)],
)
def test_headers_that_say_something_else_are_refused(at: int, value: int) -> None:
    for frame, name in ((LEAF_FRAME, VALID.digest), (INNER_FRAME, INNER.digest)):
        damaged = bytearray(frame)
        damaged[at] = value
        if at == 8:
            damaged[8:12] = bytes(4)
        with pytest.raises(FormatError):
            decode(bytes(damaged), PACK, name)


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        bytes(4),
        struct.pack("<I", 0) + bytes(32),
        struct.pack("<I", 1) + bytes(32) + struct.pack("<HBBIII", 1, 0, 0, 0, 0, 0) * 2,
        struct.pack("<I", 1) + bytes(32) + struct.pack("<HBBIII", 0, 0, 1, 0, 0, 0) * 2,
        struct.pack("<I", 3) + bytes(96) + struct.pack("<HBBIII", 0, 0, 0, 0, 0, 0) * 2,
        struct.pack("<I", 0xFFFFFFFF) + bytes(64),
    ],
)
def test_placements_that_do_not_add_up_are_refused(tail: bytes) -> None:
    for made in (VALID, INNER):
        forged = encode(made)[: 16 + len(made.content)] + tail
        with pytest.raises(FormatError):
            decode(forged, PACK, made.digest)


def test_counts_are_not_believed() -> None:
    for count in (0, 4, SPAN + 1, 0xFFFFFFFF):
        for content, level, tail in ((VALID.content, 0, LEAF_TAIL), (INNER.content, 2, INNER_TAIL)):
            with pytest.raises(FormatError):
                decode(*with_pack(forge(content, count, level, tail)))
    with pytest.raises(FormatError, match="are no node"):
        decode(bytes(MAX_NODE_BYTES + 1), PACK, INNER.digest)


def test_slots_out_of_order_and_absent_children_are_refused() -> None:
    builders: list[Callable[[], bytes]] = [
        lambda: bytes([255, 0]) + INNER.content[2:],
        lambda: bytes([7, 7]) + INNER.content[2:],
        lambda: INNER.content[:2] + ABSENT + INNER.content[34:],
    ]
    decode(*with_pack(forge(INNER.content, 2, 2, INNER_TAIL)))
    for content in builders:
        with pytest.raises(FormatError):
            decode(*with_pack(forge(content(), 2, 2, INNER_TAIL)))
