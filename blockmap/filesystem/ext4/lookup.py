"""Finds the blocks of a volume that the lookup of a path reads: descriptors, inodes, directories, extent trees."""

from collections.abc import Callable, Iterable

from blockmap.filesystem.ext4.reader import DirectoryEntry, Ext4Reader
from blockmap.filesystem.member import MemberKind
from blockmap.format import BLOCK
from blockmap.format.filemap import folders_above

_ROOT = 2
"""Inode number of the root directory."""


class Lookup:
    """Looks paths up in a file system behind `read(offset, length)`, both in bytes. Raises ImageError if it is not ext4."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        self._noted: dict[int, None] = {}
        self._reader = Ext4Reader(self._note)
        self._directories: dict[int, dict[bytes, tuple[int, bool]]] = {}

    def __call__(self, path: bytes) -> list[int]:
        """Returns the blocks that are read to find a path and its extents, in order, without those of earlier calls."""
        before = len(self._noted)
        number = self._find(path)
        if number is not None:
            self._entry(path, number)
        return list(self._noted)[before:]

    def further(self, paths: Iterable[bytes]) -> list[int]:
        """Returns the blocks that unsuccessful lookups near `paths` read, without those of earlier calls.

        They are the directories above the paths, and the ones directly below these."""
        before = len(self._noted)
        for folder in sorted({b"", *(folder for path in set(paths) for folder in folders_above(path))}):
            number = self._find(folder) if folder else _ROOT
            if number is not None:
                for inner, is_directory in self._names(number).values():
                    if is_directory:
                        self._names(inner)
        return list(self._noted)[before:]

    def _find(self, path: bytes) -> int | None:
        number = _ROOT
        for name in path.split(b"/"):
            found = self._names(number).get(name)
            if found is None:
                return None
            number, _ = found
        return number

    def _names(self, number: int) -> dict[bytes, tuple[int, bool]]:
        """Returns the inode number of each name in a directory, and True for directories; nothing if `number` is no directory."""
        if number not in self._directories:
            entry = self._entry(b"", number)
            names = self._reader.names(entry) if entry.kind is MemberKind.DIR else ()
            self._directories[number] = {name: (inode, is_directory) for name, inode, is_directory in names}
        return self._directories[number]

    def _entry(self, path: bytes, number: int) -> DirectoryEntry:
        start, end = self._reader.read_with(number)
        self._note_blocks(start, end)
        return self._reader.entry(path, number)

    def _note(self, offset: int, length: int) -> bytes:
        self._note_blocks(offset, offset + length)
        return self._read(offset, length)

    def _note_blocks(self, start: int, end: int) -> None:
        self._noted.update(dict.fromkeys(range(start // BLOCK, -(-end // BLOCK))))
