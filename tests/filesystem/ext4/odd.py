"""Three layers with every oddity that images have."""

import struct
from hashlib import shake_128

from blockmap.filesystem.member import MemberKind
from tests.image.model import Layer, entry, file, hardlink, symlink

NOBODY = 0xFFFFFFFF


def bulk(seed: int, size: int) -> bytes:
    return shake_128(seed.to_bytes(4, "big")).digest(size)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Returns an ACL in the form of system calls; each entry is tag, permissions and id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)


ACCESS = acl((1, 6, NOBODY), (2, 4, 1234), (4, 4, NOBODY), (8, 2, 77), (16, 6, NOBODY), (32, 0, NOBODY))
DEFAULT = acl((1, 7, NOBODY), (4, 5, NOBODY), (32, 0, NOBODY))
LONGEST = b"n\xff" * 127 + b"x"

LOWER: Layer = [
    entry(b"", mode=0o555, uid=3, mtime_s=1234567890, mtime_ns=5),
    entry(b"usr"),
    entry(b"usr/lib", mode=0o2755, gid=50),
    symlink(b"lib", b"usr/lib"),
    file(b"lib/through-a-symlink", b"there"),
    file(b"missing/parents/file", b"x" * 5000),
    file(b"setuid", b"s", mode=0o4755),
    entry(b"sticky", mode=0o1777),
    file(b"owner", b"o", uid=70000, gid=1 << 31),
    file(b"before-1970", b"1", mtime_s=-6, mtime_ns=500_000_000),
    file(b"first-time", b"1", mtime_s=-(1 << 31)),
    file(b"2038", b"1", mtime_s=1 << 31, mtime_ns=1),
    file(b"2106", b"1", mtime_s=1 << 32),
    file(b"last-time", b"1", mtime_s=0x37FFFFFFF, mtime_ns=999_999_999),
    symlink(b"s59", b"f" * 59),
    symlink(b"s60", b"s" * 60),
    symlink(b"s1000", b"t" * 1000),
    symlink(b"s4095", b"u" * 4095),
    entry(b"null", MemberKind.CHAR, 0o666, major=1, minor=3),
    entry(b"zero", MemberKind.CHAR, 0o666),
    entry(b"large-minor", MemberKind.BLOCK, 0o600, major=259, minor=70000),
    entry(b"largest", MemberKind.CHAR, 0o600, major=4095, minor=(1 << 20) - 1),
    entry(b"pipe", MemberKind.FIFO, 0o620),
    file(LONGEST, b"long"),
    file(b"\xff\n\\", b"not UTF-8"),
    file(b"empty"),
    file(b"a-block", bulk(1, 4096)),
    file(b"zeros", bytes(40960)),
    file(b"threshold", bulk(7, 32768)),
    file(b"below-threshold", bulk(8, 28672)),
    file(b"large", bulk(2, 3_000_001)),
    file(b"inline", b"i", xattrs={b"user.a": b"1", b"security.capability": struct.pack("<IIIII", 0x2000001, 1, 0, 0, 0)}),
    file(b"external", b"e", xattrs={b"user.name%d" % n: bulk(n, 150) for n in range(10)}),
    file(b"both", b"b", xattrs={b"user.a": bulk(1, 4000), b"user.b": b"y" * 50, b"trusted.t": b""}),
    file(b"empty-value", b"n", xattrs={b"user.empty": b""}),
    file(b"acl", b"a", mode=0o660, xattrs={b"system.posix_acl_access": ACCESS}),
    entry(b"acls", mode=0o2775, xattrs={b"system.posix_acl_access": ACCESS, b"system.posix_acl_default": DEFAULT}),
    entry(b"xattr-shrinks", xattrs={b"user.x": bulk(3, 500)}),
    entry(b"xattr-grows", xattrs={b"user.x": b"1"}),
    *(file(b"many/entry-%05d" % n, b"%d" % n) for n in range(3000)),
    *(entry(b"dirs/%d" % n) for n in range(300)),
    file(b"becomes-directory", b"file"),
    entry(b"becomes-file"),
    file(b"becomes-file/inside", b"gone"),
    file(b"replaced", bulk(3, 200_000)),
    file(b"deleted", bulk(4, 100_000)),
    file(b"twice", bulk(10, 50_000)),
    file(b"twice", b"the second counts"),
    entry(b"opaque"),
    file(b"opaque/below", b"hidden"),
    file(b"linked", bulk(5, 10_000)),
    hardlink(b"linked-too", b"linked"),
    file(b"kept-by-a-link", b"still here"),
]  # fmt: skip
MIDDLE: Layer = [
    entry(b"becomes-directory"),
    file(b"becomes-directory/inside", b"now"),
    file(b"becomes-file", b"now a file"),
    file(b"replaced", b"shorter"),
    file(b".wh.deleted"),
    file(b"opaque/above", b"shown"),
    file(b"opaque/.wh..wh..opq"),
    hardlink(b"other-name", b"kept-by-a-link"),
    hardlink(b"linked-from-above", b"linked-too"),
    file(b"linked", b"no longer linked"),
    entry(b"xattr-shrinks", xattrs={b"user.x": b"1"}),
    entry(b"xattr-grows", xattrs={b"user.x": bulk(4, 500)}),
    *(file(b"many/.wh.entry-%05d" % n) for n in range(0, 3000, 4)),
    *(file(b"many/more-%05d" % n, b"m") for n in range(500)),
    entry(b"usr/lib", mode=0o700, uid=5),
    file(b"middle", bulk(6, 70_000)),
]
UPPER: Layer = [
    file(b"deleted", b"back again"),
    file(b".wh.sticky"),
    file(b".wh.kept-by-a-link"),
    file(b"sticky/new", b"in a directory made anew"),
    file(b"many/entry-00000", b"again"),
    file(b"setuid", b"plain", mode=0o755),
    file(b".wh.middle"),
    file(b".wh.s1000"),
    file(b".wh.external"),
]
LAYERS = [LOWER, MIDDLE, UPPER]
