"""Directories as linear lists of entries that keep their places: later layers append, and move nothing."""

import struct
from collections.abc import Mapping

from blockmap.filesystem.member import MemberKind

BLOCK = 4096
_TYPES = {
    MemberKind.FILE: 1,
    MemberKind.DIR: 2,
    MemberKind.CHAR: 3,
    MemberKind.BLOCK: 4,
    MemberKind.FIFO: 5,
    MemberKind.SYMLINK: 7,
}
_ENTRY = struct.Struct("<IHBB")
DOTS_BYTES = 24
"""Bytes of "." and ".." at the beginning of the first block."""

Placed = tuple[int, bytes, int, MemberKind]
"""An entry: offset in its block, name, inode number, kind."""


def entry_bytes(name: bytes) -> int:
    """Returns the bytes that an entry takes at least."""
    return 8 + (len(name) + 3 & ~3)


class Places:
    """The place of each name of a directory: block and offset, given out in order and never reused."""

    __slots__ = ("blocks", "of", "offset")

    def __init__(self) -> None:
        self.blocks = 1
        self.offset = DOTS_BYTES
        self.of: dict[bytes, tuple[int, int]] = {}

    def update(self, names: Mapping[bytes, object]) -> None:
        """Removes the places of names that are gone, and appends those of new ones."""
        if len(self.of) and any(name not in names for name in self.of):
            self.of = {name: place for name, place in self.of.items() if name in names}
        for name in names:
            if name not in self.of:
                need = entry_bytes(name)
                if self.offset + need > BLOCK:
                    self.blocks += 1
                    self.offset = 0
                self.of[name] = (self.blocks - 1, self.offset)
                self.offset += need


def block(entries: list[Placed], dots: tuple[int, int] | None) -> bytes:
    """Returns one block with `entries`, sorted by offset; `dots` are the inodes of "." and ".." in the first block."""
    data = bytearray(BLOCK)
    if dots is not None:
        entries = [(0, b".", dots[0], MemberKind.DIR), (12, b"..", dots[1], MemberKind.DIR), *entries]
    if not entries or entries[0][0]:
        _ENTRY.pack_into(data, 0, 0, entries[0][0] if entries else BLOCK, 0, 0)
    ends = [*(offset for offset, *_ in entries[1:]), BLOCK] if entries else []
    for (offset, name, number, kind), end in zip(entries, ends, strict=True):
        _ENTRY.pack_into(data, offset, number, end - offset, len(name), _TYPES[kind])
        data[offset + 8 : offset + 8 + len(name)] = name
    return bytes(data)
