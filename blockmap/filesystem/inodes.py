"""Inodes of the merged tree: images have millions, so each kind has the fields that it needs, and no more."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from blockmap.filesystem.member import Member, MemberKind

NOTHING: Mapping[bytes, Any] = MappingProxyType({})
"""Stands for the dictionaries of inodes that need none."""


class Inode:
    """A file, directory or other object with all its names; images have millions, so each kind has the fields it needs."""

    __slots__ = (
        "block", "gid", "kind", "links", "mode", "mtime_ns", "mtime_s", "number", "place", "size", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, kind: MemberKind) -> None:
        self.kind = kind
        self.mode = 0o755
        self.uid = self.gid = 0
        self.mtime_s = self.mtime_ns = 0
        self.size = 0
        self.xattrs: Mapping[bytes, bytes] = NOTHING
        self.links = 0
        """Number of its names; 0 if it was removed."""
        self.number = 0
        """Its number in the file system; 0 before it has one."""
        self.block = 0
        """The first block of a file whose contents are in one piece, or of a directory of one block; 0 otherwise."""
        self.place: object = None
        """What else the file system's writer has of it; most files have nothing else."""

    @property
    def children(self) -> "Mapping[bytes, Inode]":
        """Children of a directory, in order of insertion."""
        return NOTHING

    @property
    def parent(self) -> "Inode":
        """The parent of a directory; the root is its own."""
        return self

    @property
    def target(self) -> bytes:
        """The target of a symlink."""
        return b""

    @property
    def device(self) -> tuple[int, int]:
        """Major and minor number of a device."""
        return 0, 0

    def describe(self, member: Member, xattrs: Mapping[bytes, bytes]) -> None:
        """Sets the attributes to those of a member."""
        self.mode, self.uid, self.gid = member.mode, member.uid, member.gid
        self.mtime_s, self.mtime_ns = member.mtime_s, member.mtime_ns
        self.size, self.xattrs = member.size, xattrs

    def reset(self) -> None:
        """Sets the attributes to those of a directory that no member describes."""
        self.mode, self.uid, self.gid, self.mtime_s, self.mtime_ns, self.xattrs = 0o755, 0, 0, 0, 0, NOTHING


class DirectoryInode(Inode):
    """A directory with its children."""

    __slots__ = ("children", "layer", "parent")

    def __init__(self, parent: "DirectoryInode | None", layer: int) -> None:
        super().__init__(MemberKind.DIR)
        self.children: dict[bytes, Inode] = {}
        self.parent: DirectoryInode = parent or self
        self.layer = layer
        """The layer that made it."""


class _SymlinkInode(Inode):
    __slots__ = ("target",)
    target: bytes

    def describe(self, member: Member, xattrs: Mapping[bytes, bytes]) -> None:
        super().describe(member, xattrs)
        self.target = member.target


class _DeviceInode(Inode):
    __slots__ = ("device",)
    device: tuple[int, int]

    def describe(self, member: Member, xattrs: Mapping[bytes, bytes]) -> None:
        super().describe(member, xattrs)
        self.device = member.major, member.minor


def make_inode(kind: MemberKind) -> Inode:
    """Returns an inode that is no directory."""
    return _CLASSES.get(kind, Inode)(kind)


_CLASSES: Mapping[MemberKind, type[Inode]] = MappingProxyType(
    {MemberKind.SYMLINK: _SymlinkInode, MemberKind.CHAR: _DeviceInode, MemberKind.BLOCK: _DeviceInode}
)
