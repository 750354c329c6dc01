"""What the starts of a version may read besides, where what is known of them is from another: pure.

A program that changed goes other ways: through more of the files of which it read some, into files beside those that it read,
and into packages beside those that it read. In second versions of Flask, Redis and a machine-learning stack, this had all but 2,
0 and 16 of the blocks that the carried profile missed; of the last without the packages, 359, in nine places, each a round trip.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

from blockmap.format.filemap import File, FileRun, folders_above
from blockmap.format.profile import ProfileItem
from blockmap.learn.block_index import BlockIndex
from blockmap.learn.new_files import ending
from blockmap.learn.port_profile import Lookup, lookup_blocks

_SHARE = 1.0
"""Of the blocks of the profile: the smallest first, up to so many. With 0.75 a shared library of 7 MB gives way to
directories of tests."""
_MOST_READ = 0.5
"""Of the files with one ending in a directory: from here on, the others are taken in; of the directories in one: above."""


def guess_files(items: Sequence[ProfileItem], layout: BlockIndex, lookup: Lookup | None = None) -> list[FileRun]:
    """The files that `items` read in part, in the order in which they are read, those beside them, then the directories
    beside theirs; some of the blocks may be among `items`. With `lookup`, what finding them reads comes before."""
    there: Counter[bytes] = Counter()
    for item in items:
        if item.path is not None:
            there[item.path] += item.blocks
    groups = [[layout.by_path[path]] for path in there if path in layout.by_path]
    groups += [[file] for file in _files_beside(there, layout.files)]
    groups += _directories_beside(there, layout.files)
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
    """The files that are not read, where most of the others with their ending in the same directory are."""
    kinds = [(file.path.rpartition(b"/")[0], ending(file.path)) for file in files]
    read = Counter((path.rpartition(b"/")[0], ending(path)) for path in there)
    every = Counter(kinds)
    for file, kind in zip(files, kinds, strict=True):
        if file.path not in there and read[kind] >= _MOST_READ * every[kind]:
            yield file


def _directories_beside(there: Collection[bytes], files: Sequence[File]) -> list[list[File]]:
    """What is in directories of which nothing is read, each as a whole, where of most of those in the same directory something
    is."""
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
