"""Encodes inodes and extent trees for the disk."""

import struct

from blockmap.errors import ImageError
from blockmap.filesystem.ext4.geometry import INODE_BYTES, Runs
from blockmap.filesystem.inodes import Inode
from blockmap.filesystem.member import MemberKind

INLINE_EXTENTS = 4
LEAF_EXTENTS = 340
MAX_EXTENT = 32768
FAST_SYMLINK = 60
"""Bytes; a symlink's target that is shorter is stored in the inode."""

_EXTRA_BYTES = 32
_EXTENTS_FLAG, _INDEX_FLAG = 0x80000, 0x1000
MIN_TIME, MAX_TIME = -(1 << 31), 0x37FFFFFFF
"""Seconds from 1970 that ext4 holds: 1901 to 2446."""
_MAX_LINKS = 65000
_TYPES = {
    MemberKind.FILE: 0x8000,
    MemberKind.DIR: 0x4000,
    MemberKind.SYMLINK: 0xA000,
    MemberKind.CHAR: 0x2000,
    MemberKind.BLOCK: 0x6000,
    MemberKind.FIFO: 0x1000,
}
_HEAD = struct.Struct("<HHIIIIIHHIII")  # mode .. osd1: 40 bytes
_TAIL = struct.Struct("<IIIIHHHHHH")  # generation .. reserved: 28 bytes
_EXTRA = struct.Struct("<HHIIIIIII")  # extra_isize .. projid: 32 bytes
_EXTENT = struct.Struct("<IHHI")
_INDEX = struct.Struct("<IIHH")
_NODE = struct.Struct("<HHHHI")


def split_runs(runs: Runs) -> list[tuple[int, int, int]]:
    """Returns extents (first block in the file, start, length), neighbours joined, none longer than ext4 allows."""
    joined: Runs = []
    for start, length in runs:
        if joined and sum(joined[-1]) == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((start, length))
    extents = []
    logical = 0
    for start, length in joined:
        for at in range(0, length, MAX_EXTENT):
            piece = min(MAX_EXTENT, length - at)
            extents.append((logical, start + at, piece))
            logical += piece
    return extents


def leaf_blocks(runs: Runs, path: object) -> int:
    """Returns the number of blocks that the extent tree takes outside of the inode."""
    extents = len(split_runs(runs))
    if extents <= INLINE_EXTENTS:
        return 0
    blocks = -(-extents // LEAF_EXTENTS)
    if blocks > INLINE_EXTENTS:
        raise ImageError(
            f"{path}: is in {extents} pieces, more than the {INLINE_EXTENTS * LEAF_EXTENTS} that are supported"
        )
    return blocks


def leaf(extents: list[tuple[int, int, int]], number: int) -> bytes:
    """Returns a block of an extent tree of depth 1."""
    own = extents[number * LEAF_EXTENTS : (number + 1) * LEAF_EXTENTS]
    return (_node(own, LEAF_EXTENTS, 0) + b"".join(_extent(*extent) for extent in own)).ljust(4096, b"\0")


def tree(extents: list[tuple[int, int, int]], leaves: list[int]) -> bytes:
    """Returns the root of an extent tree, 60 bytes in the inode; `leaves` are the blocks of the tree's leaves."""
    if not leaves:
        return (_node(extents, INLINE_EXTENTS, 0) + b"".join(_extent(*extent) for extent in extents)).ljust(60, b"\0")
    entries = b"".join(_INDEX.pack(extents[at * LEAF_EXTENTS][0], block, 0, 0) for at, block in enumerate(leaves))
    return (_node(leaves, INLINE_EXTENTS, 1) + entries).ljust(60, b"\0")


def encode(
    inode: Inode,
    path: object,
    links: int,
    size: int,
    extents: list[tuple[int, int, int]],
    leaves: list[int],
    xattr_block: int,
    inline_xattrs: bytes,
    is_hashed: bool,
) -> bytes:
    """Returns the 256 bytes of an inode. Raises ImageError, with `path`, if ext4 cannot hold an attribute."""
    if not MIN_TIME <= inode.mtime_s <= MAX_TIME:
        raise ImageError(
            f"{path}: its time, {inode.mtime_s} seconds from 1970, is outside of what ext4 holds (1901 to 2446)"
        )
    if links > _MAX_LINKS:
        if inode.kind is not MemberKind.DIR:
            raise ImageError(f"{path}: has {links} names, ext4 allows {_MAX_LINKS}")
        links = 1
    if not (0 <= inode.uid < 1 << 32 and 0 <= inode.gid < 1 << 32):
        raise ImageError(f"{path}: its owner {inode.uid}:{inode.gid} is out of range")
    flags, body = 0, b""
    blocks = sum(length for _, _, length in extents) + len(leaves) + bool(xattr_block)
    mode = inode.mode & 0o7777
    if inode.kind in (MemberKind.CHAR, MemberKind.BLOCK):
        body = _device(inode, path)
    elif inode.kind is MemberKind.SYMLINK:
        mode = 0o777
        if len(inode.target) < FAST_SYMLINK:
            body = inode.target.ljust(60, b"\0")
    if not body and inode.kind is not MemberKind.FIFO:
        flags, body = _EXTENTS_FLAG | (_INDEX_FLAG if is_hashed else 0), tree(extents, leaves)
    return assemble(
        _TYPES[inode.kind] | mode, inode.uid, inode.gid, size, links, blocks * 8, flags, body.ljust(60, b"\0"),
        inode.mtime_s, inode.mtime_ns, xattr_block, inline_xattrs,
    )  # fmt: skip


def assemble(
    mode: int, uid: int, gid: int, size: int, links: int, sectors: int, flags: int, body: bytes,
    mtime_s: int = 0, mtime_ns: int = 0, xattr_block: int = 0, inline_xattrs: bytes = b"",
) -> bytes:  # fmt: skip
    """Returns the 256 bytes of an inode with the given fields; all its times are the one given."""
    low = mtime_s & 0xFFFFFFFF
    signed = low - (1 << 32) if low >> 31 else low
    extra = mtime_ns << 2 | (mtime_s - signed) >> 32
    head = _HEAD.pack(
        mode, uid & 0xFFFF, size & 0xFFFFFFFF, low, low, low, 0, gid & 0xFFFF, links, sectors & 0xFFFFFFFF, flags, 0
    )
    tail = _TAIL.pack(0, xattr_block, size >> 32, 0, sectors >> 32, 0, uid >> 16, gid >> 16, 0, 0)
    more = _EXTRA.pack(_EXTRA_BYTES, 0, extra, extra, extra, low, extra, 0, 0)
    return b"".join((head, body, tail, more, inline_xattrs)).ljust(INODE_BYTES, b"\0")


def _device(inode: Inode, path: object) -> bytes:
    major, minor = inode.device
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise ImageError(f"{path}: its device number {major}:{minor} is out of range")
    if major < 256 and minor < 256:
        return struct.pack("<II", major << 8 | minor, 0).ljust(60, b"\0")
    return struct.pack("<II", 0, minor & 255 | major << 8 | (minor & ~255) << 12).ljust(60, b"\0")


def _node(entries: list[tuple[int, int, int]] | list[int], room: int, depth: int) -> bytes:
    return _NODE.pack(0xF30A, len(entries), room, depth, 0)


def _extent(logical: int, start: int, length: int) -> bytes:
    return _EXTENT.pack(logical, length, start >> 32, start & 0xFFFFFFFF)
