"""Bounds on what the members of an image make an import keep in memory until its end."""

from collections.abc import Mapping

from blockmap.errors import ImageError
from blockmap.filesystem.inodes import NOTHING
from blockmap.filesystem.member import Member
from blockmap.filesystem.paths import show

MAX_NAMES = 2_000_000
"""Names of files, directories and others, and sets of attributes, that the layers may bring: about 1 GB, at 0.4 to 0.6 kB each."""
MAX_LONG_BYTES = 64 << 20
"""Bytes of names, targets and attributes beyond the short ones, for all layers."""
_SHORT_BYTES = 128
"""Bytes that a name, a target or a set of attributes has without counting as long."""


class KeptMembers:
    """Counts what is kept of members. Raises ImageError where it is too much."""

    def __init__(self) -> None:
        self._count = self._long_bytes = 0
        self._xattrs: dict[tuple[tuple[bytes, bytes], ...], Mapping[bytes, bytes]] = {}
        """Each set of attributes once: often all files of an image have the same."""

    def name(self, name: bytes) -> None:
        """Counts a name in a directory."""
        self._one(name, len(name))

    def attributes(self, member: Member) -> Mapping[bytes, bytes]:
        """Counts a member's target and extended attributes, and returns the latter; those that are equal count once."""
        if member.target:
            self._long(member.path, len(member.target))
        if not member.xattrs:
            return NOTHING
        key = tuple(sorted(member.xattrs.items()))
        found = self._xattrs.setdefault(key, member.xattrs)
        if found is member.xattrs:
            self._one(member.path, sum(len(name) + len(value) for name, value in key))
        return found

    def _one(self, of: bytes, size: int) -> None:
        self._count += 1
        if self._count > MAX_NAMES:
            raise ImageError(
                f"the image brings more than {MAX_NAMES:,} files, directories and links, the most that an import takes: "
                "leave some out, or import a disk image with a file system that has them"
            )
        self._long(of, size)

    def _long(self, of: bytes, size: int) -> None:
        if size <= _SHORT_BYTES:
            return
        self._long_bytes += size - _SHORT_BYTES
        if self._long_bytes > MAX_LONG_BYTES:
            raise ImageError(
                f"{show(of)}: with it, names, targets and attributes of more than {_SHORT_BYTES} bytes take more than the "
                f"{MAX_LONG_BYTES >> 20} MiB that an image may have of them: leave such files out, if you trust the image at all"
            )
