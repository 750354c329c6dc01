"""Hooks: decoding reverses encoding, damage is noticed, and each leaf has one."""

import struct
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format.digest import Digest
from blockmap.format.hooks import HOOK, decode, encode, sample

ROOT = Digest(bytes(range(32)))
GOLDEN = "ef775e17bc92ce6f23595e61f0adec5064c722b2e7ae7108db7450971717dea9"
chunks = st.lists(st.binary(min_size=32, max_size=32).map(Digest), min_size=1, max_size=9, unique=True)
leaves = st.dictionaries(st.integers(0, (1 << 28) - 1), chunks, max_size=5).map(lambda of: sorted(of.items()))
SAMPLE = [(0, [Digest(b"\1" * 31 + b"\x40"), Digest(b"\2" * 32)]), (1 << 27, [Digest(b"\3" * 32), Digest(b"\4" * 32)])]


@given(leaves)
def test_what_is_encoded_comes_back(found: list[tuple[int, list[Digest]]]) -> None:
    hooks = sample(found)
    assert decode(encode(ROOT, hooks), ROOT).tolist() == hooks.tolist()


@given(leaves)
def test_every_leaf_has_a_hook_and_every_hook_is_a_chunk_of_its_leaf(found: list[tuple[int, list[Digest]]]) -> None:
    own = {span: {int.from_bytes(chunk[:8], "big") for chunk in of} for span, of in found}
    sampled = {span: {int.from_bytes(chunk[:8], "big") for chunk in of if chunk[31] % 64 == 0} for span, of in found}
    hooks = sample(found)
    assert set(hooks["span"].tolist()) == set(own)
    for hook, span in hooks.tolist():
        assert hook in own[span]
        assert hook in sampled[span] or hook == min(own[span])
    for span, expected in sampled.items():
        assert expected <= {hook for hook, at in hooks.tolist() if at == span}


def test_the_object_is_frozen() -> None:
    data = encode(ROOT, sample(SAMPLE))
    assert data[:44] == b"bmhk\x01\0\0\0" + ROOT + b"\x02\0\0\0"
    assert data[44:68] == b"\1" * 8 + bytes(4) + b"\3" * 8 + b"\0\0\0\x08"
    assert data[68:] == sha256(data[:68]).digest()
    assert sha256(data).hexdigest() == GOLDEN


@given(st.data())
def test_any_damage_is_noticed(data: st.DataObject) -> None:
    whole = encode(ROOT, sample(SAMPLE))
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(1, 255))
    for damaged in (whole[:at] + bytes([whole[at] ^ byte]) + whole[at + 1 :], whole[:at], whole + b"\0"):
        with pytest.raises(FormatError):
            decode(damaged, ROOT)


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_are_refused(data: bytes, sealed: bool) -> None:
    with pytest.raises(FormatError):
        decode(data + sha256(data).digest() if sealed else data, ROOT)


def forged(rows: list[tuple[int, int]], count: int | None = None, head: bytes = b"bmhk\x01\0\0\0") -> bytes:
    """Returns hooks with a correct seal."""
    data = head + ROOT + struct.pack("<I", len(rows) if count is None else count) + np.array(rows, HOOK).tobytes()
    return data + sha256(data).digest()


@pytest.mark.parametrize(
    "data",
    [
        forged([(5, 1), (4, 1)]),
        forged([(4, 1), (4, 1)]),
        forged([(4, 2), (5, 1)]),
        forged([(4, 1 << 28)]),
        forged([(4, 1)], 2),
        forged([(4, 1)], 0),
        forged([(4, 1)], 1 << 31),
        forged([(4, 1)], head=b"bmhk\x02\0\0\0"),
        forged([(4, 1)], head=b"bmhk\x01\0\0\1"),
        forged([(4, 1)], head=b"bmfm\x01\0\0\0"),
    ],
)
def test_a_seal_alone_is_not_enough(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode(data, ROOT)


def test_the_hooks_of_another_tree_are_refused() -> None:
    assert len(decode(forged([(4, 1), (5, 1), (1, 2)]), ROOT)) == 3
    with pytest.raises(FormatError, match="not the hooks"):
        decode(encode(ROOT, sample(SAMPLE)), Digest(bytes(32)))
