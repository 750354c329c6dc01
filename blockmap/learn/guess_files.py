"""Guesses which further files the starts of a version read, when its profile is ported from another version. It is pure.

A changed program reads more of the same files, and files and packages beside them. In second versions of Flask, Redis and a
machine-learning stack, the guesses had all but 2, 0 and 16 of the blocks that the ported profile missed.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

from blockmap.format.filemap import File, FileRun, folders_above
from blockmap.format.profile import ProfileItem
from blockmap.learn.block_index import BlockIndex
from blockmap.learn.new_files import ending
from blockmap.learn.port_profile import PathLookup, lookup_blocks

_SHARE = 1.0
"""Limit on the guesses, as a share of the blocks of the profile; the smallest files and directories come first. With 0.75, a
shared library of 7 MB was left out for directories of tests."""
_MOST_READ = 0.5
"""Share of a directory's files with one ending that are read, from which on the others are guessed; the same of its directories."""


def guess_files(items: Sequence[ProfileItem], index: BlockIndex, lookup: PathLookup | None = None) -> list[FileRun]:
    """Returns the runs of files that starts may read besides `items`; some of the blocks may be among `items`.

    First come the files that `items` read in part, in their order, then files beside them, then directories beside theirs.
    With `lookup`, the blocks that finding a file reads come before its own.
    """
    there: Counter[bytes] = Counter()
    for item in items:
        if item.path is not None:
            there[item.path] += item.blocks
    groups = [[index.by_path[path]] for path in there if path in index.by_path]
    groups += [[file] for file in _files_beside(there, index.files)]
    groups += _directories_beside(there, index.files)
    room = _SHARE * sum(item.blocks for item in items)
    taken = []
    for number, group in sorted(enumerate(groups), key=lambda each: sum(file.blocks for file in each[1])):
        room -= sum(file.blocks - there[file.path] for file in group)
        if room < 0:
            break
        taken.append(number)
    return [
        run for number in sorted(taken) for file in groups[number] for run in (*lookup_blocks(file, lookup), *file.runs)
    ]


def _files_beside(there: Collection[bytes], files: Sequence[File]) -> Iterator[File]:
    """Yields the files that are not read, although most others with their ending in the same directory are."""
    kinds = [(file.path.rpartition(b"/")[0], ending(file.path)) for file in files]
    read = Counter((path.rpartition(b"/")[0], ending(path)) for path in there)
    every = Counter(kinds)
    for file, kind in zip(files, kinds, strict=True):
        if file.path not in there and read[kind] >= _MOST_READ * every[kind]:
            yield file


def _directories_beside(there: Collection[bytes], files: Sequence[File]) -> list[list[File]]:
    """Returns the files of each directory in which no file is read, although files of most directories beside it are."""
    inner: defaultdict[bytes, set[bytes]] = defaultdict(set)
    for file in files:
        for below, above in pairwise(folders_above(file.path)):
            inner[above].add(below)
    read = {folder for path in there for folder in folders_above(path)}
    new = {
        folder for around in inner.values() if len(around & read) > _MOST_READ * len(around) for folder in around - read
    }
    groups: defaultdict[bytes, list[File]] = defaultdict(list)
    for file in files:
        for folder in new.intersection(folders_above(file.path)):
            groups[folder].append(file)
    return list(groups.values())
