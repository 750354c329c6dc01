"""Encodes extended attributes as ext4 stores them: in the inode if they fit, else in a block of their own, else in both."""

import struct
from collections.abc import Mapping

from blockmap.errors import ImageError

MAGIC = 0xEA020000
INLINE_BYTES = 96
"""Bytes for attributes in an inode of 256 bytes with 32 bytes of extra fields."""

_PREFIXES = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))
"""Prefixes and their indexes, without "system." (7): the kernel reads only ACLs of it, and "system.data" would be inline data."""
_ACLS = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
_ACL_TAGS = (1, 2, 4, 8, 16, 32)
"""Tags of ACL entries: owner, named user, group, named group, mask, others."""
_NAMED_TAGS = (2, 8)
_ENTRY = struct.Struct("<BBHIII")
_MASK = 0xFFFFFFFF

Attribute = tuple[int, bytes, bytes]
"""An attribute: index of its prefix, rest of its name, value as stored."""


def is_known(name: bytes) -> bool:
    """Returns True if ext4 has a place for attributes of the kind of `name`."""
    return name in _ACLS or any(name.startswith(prefix) for prefix, _ in _PREFIXES)


def encode(xattrs: Mapping[bytes, bytes], path: object) -> tuple[bytes, bytes]:
    """Returns the attributes inside the inode (96 bytes or none) and those in a block (4096 bytes or none).

    Raises ImageError, with `path`, if they do not fit in both together, or one is of an unknown kind.
    """
    if not xattrs:
        return b"", b""
    attributes = sorted((_attribute(*item, path) for item in xattrs.items()), key=lambda a: (a[0], len(a[1]), a[1]))
    inline = _pack(attributes, INLINE_BYTES - 4, 0)
    if inline is not None:
        return struct.pack("<I", MAGIC) + inline, b""
    head, body = b"", _pack(attributes, 4096 - 32, 32)
    if body is None:
        inside, attributes = _divide(attributes)
        body = _pack(attributes, 4096 - 32, 32)
        if inside:
            head = struct.pack("<I", MAGIC) + (_pack(inside, INLINE_BYTES - 4, 0) or b"")
    if body is None:
        raise ImageError(
            f"{path}: its extended attributes take more than ext4 has for them, {INLINE_BYTES} bytes in the inode and a block"
        )
    block_hash = 0
    for attribute in attributes:
        block_hash = ((block_hash << 16 | block_hash >> 16) & _MASK) ^ _hash(attribute)
    return head, struct.pack("<IIIIIIII", MAGIC, 1, 1, block_hash, 0, 0, 0, 0) + body


def _divide(attributes: list[Attribute]) -> tuple[list[Attribute], list[Attribute]]:
    """Splits attributes into those that fit into the inode, taken in order, and the rest."""
    inside: list[Attribute] = []
    outside: list[Attribute] = []
    for attribute in attributes:
        fits = _need([*inside, attribute]) <= INLINE_BYTES - 4
        (inside if fits else outside).append(attribute)
    return inside, outside


def _attribute(name: bytes, value: bytes, path: object) -> Attribute:
    if name in _ACLS:
        return _ACLS[name], b"", _acl(value, path)
    for prefix, index in _PREFIXES:
        rest = name[len(prefix) :]
        if name.startswith(prefix) and 0 < len(rest) <= 255:
            return index, rest, value
    raise ImageError(f"{path}: ext4 cannot hold the extended attribute {name.decode('utf-8', 'backslashreplace')!r}")


def _acl(value: bytes, path: object) -> bytes:
    """Converts an ACL from the form of system calls (version 2, 8 bytes an entry) to ext4's (version 1, ids only where needed)."""
    if len(value) < 4 or len(value) % 8 != 4 or value[:4] != struct.pack("<I", 2):
        raise ImageError(f"{path}: its POSIX ACL is damaged")
    out = [struct.pack("<I", 1)]
    for tag, permissions, owner in struct.iter_unpack("<HHI", value[4:]):
        if tag not in _ACL_TAGS or permissions > 7:
            raise ImageError(f"{path}: its POSIX ACL has an entry of tag {tag:#x} and permissions {permissions:#o}")
        out.append(struct.pack("<HH", tag, permissions))
        if tag in _NAMED_TAGS:
            out.append(struct.pack("<I", owner))
    return b"".join(out)


def _need(attributes: list[Attribute]) -> int:
    """Returns the bytes that entries, their end and values take."""
    return 4 + sum(_ENTRY.size + (len(name) + 3 & ~3) + (len(value) + 3 & ~3) for _, name, value in attributes)


def _pack(attributes: list[Attribute], room: int, base: int) -> bytes | None:
    """Packs entries from the front and values from the back; None if they do not fit.

    Offsets of values count from `base` bytes before the result.
    """
    if _need(attributes) > room:
        return None
    data = bytearray(room)
    front, back = 0, room
    for attribute in attributes:
        index, name, value = attribute
        back -= len(value) + 3 & ~3
        data[back : back + len(value)] = value
        offset = base + back if value else 0
        _ENTRY.pack_into(data, front, len(name), index, offset, 0, len(value), _hash(attribute) if base else 0)
        front += _ENTRY.size
        data[front : front + len(name)] = name
        front += len(name) + 3 & ~3
    return bytes(data)


def _hash(attribute: Attribute) -> int:
    _, name, value = attribute
    found = 0
    for byte in name:
        found = ((found << 5 | found >> 27) & _MASK) ^ byte
    padded = value.ljust(len(value) + 3 & ~3, b"\0")
    for (word,) in struct.iter_unpack("<I", padded):
        found = ((found << 16 | found >> 16) & _MASK) ^ word
    return found
