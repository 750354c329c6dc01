"""Files that a version has and the one before it had not, which its starts will read as they read the others around: pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from blockmap.format.filemap import File, folders_above
from blockmap.format.profile import ProfileItem

_SHARE = 0.1
"""Of the files with one ending below a directory: where starts read as many, new ones are taken in. In new versions of three
images 27 to 44 new files were so, of which starts read 3 in 4; half as many of the right ones came with a half."""
_MOST = 0.1
"""Of the blocks of a profile: a version that is new all over is not brought whole."""
_FEW = 2
"""Files that say nothing yet."""


@dataclass(slots=True)
class _Kin:
    """Files with one ending below a directory, or all that are in it."""

    files: int = 0
    read: int = 0
    last: int = 0
    """The last item that was the first of a file."""

    def add(self, item: int | None) -> None:
        """A file, and the item that was its first."""
        self.files += 1
        if item is not None:
            self.read += 1
            self.last = max(self.last, item)


def new_files(items: Sequence[ProfileItem], old: Collection[bytes], files: Sequence[File]) -> dict[int, list[File]]:
    """By the number of the item after which they are read: those of `files` that are not among the `old` paths, and are of
    a kind of which starts read enough, below the nearest directory that had a few of it; where there is none, it is all
    that was in the nearest directory which stood before."""
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
    """Of the name of a file, without the dot; empty where it has none."""
    name = path.rpartition(b"/")[2]
    return name[1:].rpartition(b".")[2] if b"." in name[1:] else b""
