"""What the starts of a version may read besides, where what is known of them is from another: pure.

A program that changed goes other ways: through more of the files of which it read some, and into files beside those that it
read. In second versions of a Node.js server, a Flask application and a machine-learning stack, this had 29 of 31, 37 of 41 and
294 of 667 blocks that the carried profile missed, in 4 of 6, 10 of 13 and 125 of 136 places, each a round trip.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from blockmap.format.filemap import File, Run
from blockmap.format.profile import Item
from blockmap.learn.layout import Layout
from blockmap.learn.newcomers import ending

_SHARE = 0.75
"""Of the blocks of the profile: small files first, up to so many. A shared library of 8 MB beside 30 MB of others still is
among them."""
_MOST_READ = 0.5
"""Of the files with one ending in a directory: from here on, the others are taken in."""


def likely(items: Sequence[Item], layout: Layout) -> list[Run]:
    """The files that `items` read in part, in the order in which they are read, then those beside them; some of the blocks
    may be among `items`."""
    there: Counter[bytes] = Counter()
    for item in items:
        if item.path is not None:
            there[item.path] += item.blocks
    files = [layout.by_path[path] for path in there if path in layout.by_path]
    files += _beside(there, layout.files)
    room = _SHARE * sum(item.blocks for item in items)
    taken = set()
    for file in sorted(files, key=lambda file: file.size):
        room -= file.blocks - there[file.path]
        if room < 0:
            break
        taken.add(file.path)
    return [run for file in files if file.path in taken for run in file.runs]


def _beside(there: Collection[bytes], files: Sequence[File]) -> Iterable[File]:
    """The files that are not read, where most of the others with their ending in the same directory are."""
    kinds = [_kind(file.path) for file in files]
    every, read = Counter(kinds), Counter(map(_kind, there))
    return [
        file
        for file, kind in zip(files, kinds, strict=True)
        if file.path not in there and read[kind] >= _MOST_READ * every[kind]
    ]


def _kind(path: bytes) -> tuple[bytes, bytes]:
    """The directory and the ending of a file."""
    return path.rpartition(b"/")[0], ending(path)
