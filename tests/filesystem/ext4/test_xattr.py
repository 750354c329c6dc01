"""Extended attributes, encoded and read back by the independent reader's decoder."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import ImageError
from blockmap.filesystem.ext4 import xattr
from blockmap.filesystem.ext4.reader import decode_attributes

NAMES = st.builds(
    bytes.__add__,
    st.sampled_from([b"user.", b"trusted.", b"security."]),
    st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name),
)
SETS = st.dictionaries(NAMES, st.one_of(st.binary(max_size=30), st.binary(max_size=1500)), max_size=8)


def decode(inline: bytes, block: bytes) -> dict[bytes, bytes]:
    inside = list(decode_attributes(inline[4:], 0)) if inline else []
    outside = list(decode_attributes(block, 32)) if block else []
    assert len(dict(inside + outside)) == len(inside) + len(outside)
    return dict(inside + outside)


def need(attributes: dict[bytes, bytes]) -> int:
    rest = (name.partition(b".")[2] for name in attributes)
    return (
        4
        + sum(16 + (len(name) + 3) // 4 * 4 for name in rest)
        + sum((len(v) + 3) // 4 * 4 for v in attributes.values())
    )


@given(SETS)
def test_what_is_encoded_is_found_again(attributes: dict[bytes, bytes]) -> None:
    try:
        inline, block = xattr.encode(attributes, "path")
    except ImageError:
        assert need(attributes) > 4064
        return
    assert decode(inline, block) == attributes
    assert (len(inline), len(block)) in ((0, 0), (96, 0), (0, 4096), (96, 4096))
    assert bool(block) == (need(attributes) > 92)
    assert bool(inline and block) == (need(attributes) > 4064)
    assert xattr.encode(dict(reversed(attributes.items())), "path") == (inline, block)


def test_exactly_full() -> None:
    for attributes, inside, outside in (
        ({b"user.abcd": bytes(68)}, 96, 0),
        ({b"user.abcd": bytes(69)}, 0, 4096),
        ({b"user.abcd": bytes(4040)}, 0, 4096),
        ({b"user.abcd": bytes(4040), b"user.efgh": bytes(68)}, 96, 4096),
    ):
        inline, block = xattr.encode(attributes, "path")
        assert (len(inline), len(block)) == (inside, outside)
        assert decode(inline, block) == attributes
    for attributes in ({b"user.abcd": bytes(4041)}, {b"user.abcd": bytes(4040), b"user.efgh": bytes(69)}):
        with pytest.raises(ImageError, match="path"):
            xattr.encode(attributes, "path")


def test_acls_have_ids_only_where_they_count() -> None:
    entries = [
        (1, 7, 0xFFFFFFFF),
        (2, 6, 1000),
        (4, 5, 0xFFFFFFFF),
        (8, 4, 50),
        (16, 7, 0xFFFFFFFF),
        (32, 0, 0xFFFFFFFF),
    ]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)
    inline, block = xattr.encode({b"system.posix_acl_access": value}, "path")
    length, index, offset, _, size, _ = struct.unpack_from("<BBHIII", inline, 4)
    stored = inline[4 + offset : 4 + offset + size]
    assert (length, index, size) == (0, 2, 4 + 4 * 4 + 2 * 8)
    assert stored[:4] == struct.pack("<I", 1)
    assert stored[4:16] == struct.pack("<HHHHI", 1, 7, 2, 6, 1000)
    assert decode(inline, block) == {b"system.posix_acl_access": value}


@pytest.mark.parametrize(
    "value",
    [b"", b"\2\0\0\0\1", b"\1\0\0\0", b"\2\0\0\0" + bytes(8), b"\2\0\0\0\1\0\10\0\xff\xff\xff\xff", bytes(12)],
)
def test_damaged_acls_are_refused(value: bytes) -> None:
    with pytest.raises(ImageError, match=r"path.*ACL"):
        xattr.encode({b"system.posix_acl_default": value}, "path")
