"""Predicts which new files of a version its starts read, by the files around them in the version before. It is pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from blockmap.format.filemap import File, folders_above
from blockmap.format.profile import ProfileItem

_SHARE = 0.1
"""Share of a directory's files with one ending that starts have to read for new ones to be taken in. In new versions of three
images, starts read 3 in 4 of the files predicted."""
_MOST = 0.1
"""Limit on the blocks of new files, as a share of the profile's, so that an entirely new version is not fetched whole."""
_FEW = 2
"""Files with one ending that a directory needs for a prediction."""


@dataclass(slots=True)
class _Kin:
    """Counts of the files with one ending below a directory, or of all files in it."""

    files: int = 0
    read: int = 0
    last: int = 0
    """Number of the last item that was the first of one of the files."""

    def add(self, item: int | None) -> None:
        """Counts a file; `item` is the number of its first item, None if it is not read."""
        self.files += 1
        if item is not None:
            self.read += 1
            self.last = max(self.last, item)


def new_files(items: Sequence[ProfileItem], old: Collection[bytes], files: Sequence[File]) -> dict[int, list[File]]:
    """Returns the new files that starts will read, by the number of the item after which they are read.

    A file is new if its path is not in `old`. It is taken in if starts read enough files with its ending below the nearest
    directory that has a few of these; without such a directory, enough of all files in the nearest old directory.
    """
    first: dict[bytes, int] = {}
    for number, item in enumerate(items):
        if item.path is not None:
            first.setdefault(item.path, number)
    kin: dict[tuple[bytes, bytes | None], _Kin] = {}
    for path in old:
        folders, kind = folders_above(path), ending(path)
        for key in [*((folder, kind) for folder in folders), *((folder, None) for folder in folders[:1])]:
            kin.setdefault(key, _Kin()).add(first.get(path))
    found: dict[int, list[File]] = {}
    room = _MOST * sum(item.blocks for item in items)
    for file in files:
        size = file.blocks
        if file.path in old or size > room:
            continue
        folders, kind = folders_above(file.path), ending(file.path)
        around = (kin[folder, kind] for folder in folders if (folder, kind) in kin)
        beside = (kin[folder, None] for folder in folders if (folder, None) in kin)
        own = next((each for each in around if each.files >= _FEW), None) or next(beside, _Kin())
        if own.read and own.read >= _SHARE * own.files:
            found.setdefault(own.last, []).append(file)
            room -= size
    return found


def ending(path: bytes) -> bytes:
    """Returns the ending of a file's name without the dot; empty if it has none."""
    name = path.rpartition(b"/")[2]
    return name[1:].rpartition(b".")[2] if b"." in name[1:] else b""
