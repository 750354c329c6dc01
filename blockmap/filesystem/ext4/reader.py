"""Reads an ext4 file system that nobody has mounted: its tree, attributes and contents.

It is made from the on-disk format alone and shares no code with the writer, so it does not share its mistakes either. It
understands extents, linear and hashed directories (which are read linearly), attributes in inodes and blocks,
descriptors of 32 and 64 bytes. It takes the journal to be empty.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from blockmap.errors import ImageError
from blockmap.filesystem.member import MemberKind

_KINDS = {
    0x8000: MemberKind.FILE, 0x4000: MemberKind.DIR, 0xA000: MemberKind.SYMLINK, 0x2000: MemberKind.CHAR,
    0x6000: MemberKind.BLOCK, 0x1000: MemberKind.FIFO, 0xC000: MemberKind.SOCKET,
}  # fmt: skip
_UNDERSTOOD = 0x2 | 0x40 | 0x80 | 0x200  # filetype, extents, 64bit, flex_bg
_EXTENTS, _INLINE_DATA = 0x80000, 0x10000000
_PREFIXES = {1: b"user.", 4: b"trusted.", 6: b"security.", 7: b"system."}
_ACLS = {2: b"system.posix_acl_access", 3: b"system.posix_acl_default"}
_PIECE_BYTES = 1 << 20
_MAX_DIRECTORY = 1 << 30
_MAX_DEPTH = 5
_DIRECTORY = 2
"""The file type in directory entries that name directories."""
_INODE_READ_AHEAD = 32
"""Blocks of an inode table that the kernel reads at once, aligned: the mount option inode_readahead_blks."""


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """A path with the attributes of its inode."""

    path: bytes
    """Path relative to the root; b"" is the root itself."""
    number: int
    """Number of the inode; paths with one number are one file."""
    kind: MemberKind
    mode: int
    """Permission bits with setuid, setgid and sticky: 0o7777."""
    uid: int
    gid: int
    mtime_s: int
    mtime_ns: int
    size: int
    """Size in bytes."""
    links: int
    target: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes]
    runs: list[tuple[int, int, int]]
    """Runs: first block in the file, first block in the volume, length; blocks in no run are zeros."""


class Ext4Reader:
    """A file system behind `read(offset, length)`, both in bytes. Raises ImageError if it is damaged or not understood."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        data = self._bytes(1024, 1024)
        (magic,) = struct.unpack_from("<H", data, 0x38)
        if magic != 0xEF53:
            raise ImageError("the volume holds no ext4 file system: only images' volumes can be compared file by file")
        (first_block, log_size) = struct.unpack_from("<II", data, 0x14)
        (self._group_inodes,) = struct.unpack_from("<I", data, 0x28)
        (self._inodes,) = struct.unpack_from("<I", data, 0)
        (self._inode_bytes,) = struct.unpack_from("<H", data, 0x58)
        (incompat,) = struct.unpack_from("<I", data, 0x60)
        if incompat & ~_UNDERSTOOD or log_size > 6 or not self._group_inodes or self._inode_bytes < 128:
            raise ImageError(f"the file system has features (incompat {incompat:#x}) that are not understood")
        self._block: int = 1024 << log_size
        self._descriptor = struct.unpack_from("<H", data, 0xFE)[0] if incompat & 0x80 else 32
        self._descriptors = (first_block + 1) * self._block

    @property
    def block_bytes(self) -> int:
        return self._block

    def walk(self) -> Iterator[DirectoryEntry]:
        """Yields every path, parents first, sorted by the bytes of the names within a directory."""
        seen: set[int] = set()
        waiting: list[tuple[bytes, int]] = [(b"", 2)]
        while waiting:
            path, number = waiting.pop()
            entry = self.entry(path, number)
            yield entry
            if entry.kind is MemberKind.DIR:
                if number in seen:
                    raise ImageError(f"the directory {path!r} is found twice: the file system is damaged")
                seen.add(number)
                names = sorted(self.names(entry), reverse=True)
                waiting.extend((path + b"/" + name if path else name, child) for name, child, _ in names)

    def entry(self, path: bytes, number: int) -> DirectoryEntry:
        """Reads the inode `number`, which `path` names."""
        raw = self._inode(number)
        mode, uid, size, _, _, mtime, _, gid, links, _, flags = struct.unpack_from("<HHIIIIIHHII", raw)
        uid_high, gid_high = struct.unpack_from("<HH", raw, 0x78)
        (size_high,) = struct.unpack_from("<I", raw, 0x6C)
        kind = _KINDS.get(mode & 0xF000)
        if kind is None or flags & _INLINE_DATA:
            raise ImageError(f"inode {number} of {path!r} is of a kind that is not understood")
        body = raw[0x28:0x64]
        size |= size_high << 32
        (xattr_block,) = struct.unpack_from("<I", raw, 0x68)
        (xattr_high,) = struct.unpack_from("<H", raw, 0x76)
        runs, target, major, minor = [], b"", 0, 0
        if kind in (MemberKind.CHAR, MemberKind.BLOCK):
            major, minor = _device(body)
        elif kind is MemberKind.SYMLINK and not flags & _EXTENTS:
            target = body[:size]
        elif kind not in (MemberKind.FIFO, MemberKind.SOCKET):
            if not flags & _EXTENTS and size:
                raise ImageError(f"inode {number} of {path!r} has no extents, but a block map: not understood")
            runs = sorted(self._extents(body, 0)) if flags & _EXTENTS else []
        if kind is MemberKind.SYMLINK and flags & _EXTENTS:
            if size > self._block:
                raise ImageError(f"the target of {path!r} is too long: the file system is damaged")
            target = b"".join(self._contents(runs, size))
        seconds, nanoseconds = _time(raw, mtime)
        return DirectoryEntry(
            path, number, kind, mode & 0o7777, uid | uid_high << 16, gid | gid_high << 16, seconds, nanoseconds, size, links,
            target, major, minor, self._xattrs(raw, xattr_block | xattr_high << 32), runs,
        )  # fmt: skip

    def contents(self, entry: DirectoryEntry) -> Iterator[bytes]:
        """Yields the bytes of a regular file, in pieces."""
        return self._contents(entry.runs, entry.size)

    def _contents(self, runs: list[tuple[int, int, int]], size: int) -> Iterator[bytes]:
        at = 0
        for logical, start, length in runs:
            begin, end = logical * self._block, min((logical + length) * self._block, size)
            if begin > at:
                yield from _zeros(min(begin, size) - at)
                at = min(begin, size)
            if begin < at or end <= at:
                if begin < at:
                    raise ImageError("the extents of a file overlap: the file system is damaged")
                continue
            for offset in range(begin, end, _PIECE_BYTES):
                yield self._bytes(start * self._block + offset - begin, min(_PIECE_BYTES, end - offset))
            at = end
        yield from _zeros(size - at)

    def names(self, directory: DirectoryEntry) -> Iterator[tuple[bytes, int, bool]]:
        """Yields each name in a directory with its inode number, and True for directories."""
        if directory.size > _MAX_DIRECTORY:
            raise ImageError(f"the directory {directory.path!r} is too long: the file system is damaged")
        data = b"".join(self.contents(directory))
        for base in range(0, len(data), self._block):
            at = base
            while at < base + self._block:
                number, length, name_length, kind = struct.unpack_from("<IHBB", data, at)
                if length < 8 or length % 4 or at + length > base + self._block or name_length + 8 > length:
                    raise ImageError(f"the directory {directory.path!r} is damaged")
                name = data[at + 8 : at + 8 + name_length]
                if number and name not in (b".", b".."):
                    yield name, number, kind == _DIRECTORY
                at += length

    def _extents(self, node: bytes, depth_seen: int) -> Iterator[tuple[int, int, int]]:
        magic, count, _, depth = struct.unpack_from("<HHHH", node)
        if magic != 0xF30A or 12 + 12 * count > len(node) or depth_seen > _MAX_DEPTH:
            raise ImageError("an extent tree is damaged")
        for at in range(12, 12 + 12 * count, 12):
            if depth:
                _, low, high = struct.unpack_from("<IIH", node, at)
                yield from self._extents(self._bytes((low | high << 32) * self._block, self._block), depth_seen + 1)
            else:
                logical, length, high, low = struct.unpack_from("<IHHI", node, at)
                if length <= 32768:
                    yield logical, low | high << 32, length

    def _xattrs(self, raw: bytes, block: int) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        if len(raw) > 128:
            (extra,) = struct.unpack_from("<H", raw, 0x80)
            inline = raw[128 + extra :]
            if inline[:4] == b"\x00\x00\x02\xea":
                found.update(decode_attributes(inline[4:], 0))
        if block:
            data = self._bytes(block * self._block, self._block)
            if data[:4] != b"\x00\x00\x02\xea":
                raise ImageError("a block of extended attributes is damaged")
            found.update(decode_attributes(data, 32))
        return found

    def read_with(self, number: int) -> tuple[int, int]:
        """Returns the bytes [start, end) of the volume that the kernel reads when it needs an inode.

        They are the blocks of its read-ahead window in the inode table, without the unused end of the table.
        """
        table, unused = self._table(number)
        end = table + (self._group_inodes - unused) * self._inode_bytes
        own = table + (number - 1) % self._group_inodes * self._inode_bytes
        window = _INODE_READ_AHEAD * self._block
        start = own // window * window
        return max(start, table), max(
            min(start + window, -(-end // self._block) * self._block), own + self._inode_bytes
        )

    def _inode(self, number: int) -> bytes:
        table, _ = self._table(number)
        return self._bytes(table + (number - 1) % self._group_inodes * self._inode_bytes, self._inode_bytes)

    def _table(self, number: int) -> tuple[int, int]:
        """Returns the byte at which the table of an inode begins, and the number of never used inodes at its end."""
        if not 0 < number <= self._inodes:
            raise ImageError(f"inode {number} does not exist: the file system is damaged")
        group = (number - 1) // self._group_inodes
        descriptor = self._bytes(self._descriptors + group * self._descriptor, self._descriptor)
        (table,) = struct.unpack_from("<I", descriptor, 8)
        (unused,) = struct.unpack_from("<H", descriptor, 0x1C)
        if self._descriptor >= 64:
            table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
            unused |= struct.unpack_from("<H", descriptor, 0x32)[0] << 16
        return table * self._block, unused

    def _bytes(self, offset: int, length: int) -> bytes:
        data = self._read(offset, length)
        if len(data) != length:
            raise ImageError(f"the file system points at byte {offset}, beyond the end of its volume: it is damaged")
        return data


def decode_attributes(data: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the attributes whose entries begin at `at`; offsets of values count from the beginning of `data`."""
    while at + 16 <= len(data) and data[at : at + 4] != bytes(4):
        name_length, index, offset, inode, size, _ = struct.unpack_from("<BBHIII", data, at)
        name = data[at + 16 : at + 16 + name_length]
        if inode or offset + size > len(data):
            raise ImageError("an extended attribute is damaged, or in an inode of its own")
        value = data[offset : offset + size]
        if index in _ACLS:
            yield _ACLS[index], _acl(value)
        elif index in _PREFIXES:
            yield _PREFIXES[index] + name, value
        else:
            raise ImageError(f"an extended attribute has the unknown prefix {index}")
        at += 16 + (name_length + 3 & ~3)


def _acl(value: bytes) -> bytes:
    """Converts an ACL from the form on disk to that of system calls."""
    out = struct.pack("<I", 2)
    at = 4
    while at + 4 <= len(value):
        tag, permissions = struct.unpack_from("<HH", value, at)
        at += 4
        owner = 0xFFFFFFFF
        if tag in (2, 8):
            if at + 4 > len(value):
                raise ImageError("a POSIX ACL is damaged")
            (owner,) = struct.unpack_from("<I", value, at)
            at += 4
        out += struct.pack("<HHI", tag, permissions, owner)
    return out


def _device(body: bytes) -> tuple[int, int]:
    old, new = struct.unpack_from("<II", body)
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00


def _time(raw: bytes, low: int) -> tuple[int, int]:
    seconds = low - (1 << 32) if low >> 31 else low
    if len(raw) >= 0x8C:
        (extra,) = struct.unpack_from("<I", raw, 0x88)
        return seconds + ((extra & 3) << 32), extra >> 2
    return seconds, 0


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        piece = min(count, _PIECE_BYTES)
        yield bytes(piece)
        count -= piece
