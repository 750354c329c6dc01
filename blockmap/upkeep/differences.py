"""Compares two versions: which blocks differ, which files, and what the newer one adds to the store."""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from itertools import pairwise
from typing import NamedTuple

from blockmap.errors import NotFound
from blockmap.filesystem.ext4.reader import Ext4Reader
from blockmap.filesystem.member import MemberKind
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.extent import Extent
from blockmap.format.filemap import File
from blockmap.format.node import Leaf
from blockmap.format.tree import Root
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import above, diff, leaves

_PIECE = 1 << 20
"""Bytes of a file that are read at once."""


class Range(NamedTuple):
    """Blocks [start, end) of a volume."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TreeDifference:
    """How the trees of two volumes differ."""

    ranges: list[Range]
    """Blocks that are not the same piece of the same chunk on both sides, in order; adjacent ranges are joined."""
    added_bytes: int
    """Stored bytes of the chunks that the second has in the parts that differ, and the first has not."""

    @property
    def blocks(self) -> int:
        return sum(end - start for start, end in self.ranges)

    def touches(self, start: int, length: int) -> bool:
        """Returns True if a run of blocks has one that differs."""
        at = bisect_right(self.ranges, (start, 1 << 62)) - 1
        near = self.ranges[max(at, 0) : at + 2]
        return any(each.start < start + length and start < each.end for each in near)


def compare_trees(repository: Repository, left: Root, right: Root) -> TreeDifference:
    """Compares two trees; reads only nodes that differ. Corrupt, NotFound, StoreUnavailable."""
    ranges: list[Range] = []
    before: set[Digest] = set()
    after: dict[Digest, int] = {}
    for span, old, new in diff(left, right, repository.packs.nodes):
        base = span * SPAN
        for start, end in _differing(_extents(old, base), _extents(new, base)):
            if ranges and ranges[-1].end == start:
                start = ranges.pop().start
            ranges.append(Range(start, end))
        before.update(old.chunks if old is not None else ())
        if new is not None:
            places = zip(new.chunks, new.placements, strict=True)
            after.update((chunk, place.stored) for chunk, place in places if place is not None)
    return TreeDifference(ranges, sum(stored for chunk, stored in after.items() if chunk not in before))


class Change(Enum):
    ADDED = "A"
    DELETED = "D"
    MODIFIED = "M"
    RENAMED = "R"


class FileChange(NamedTuple):
    """A regular file that differs between two versions."""

    change: Change
    path: bytes
    size: int
    """Bytes, in the second version where it is there."""
    source: bytes = b""
    """The path in the first version of a file that was renamed."""


def compare_files(repository: Repository, left: Root, right: Root, trees: TreeDifference) -> list[FileChange]:
    """Compares the contents of regular files, by path; a file that is gone and has come up elsewhere is renamed.

    `trees` is the difference of the two trees. Raises ImageError where a volume has no file system.
    """
    old, new = _Files(repository, left), _Files(repository, right)
    changes: list[FileChange] = []
    suspects = []
    for path, file in new.by_path.items():
        was = old.by_path.get(path)
        if was is not None and was.size != file.size:
            changes.append(FileChange(Change.MODIFIED, path, file.size))
        elif was is not None and (was.runs != file.runs or any(trees.touches(*run) for run in file.runs)):
            suspects.append(path)
    gone = {path: old.by_path[path] for path in old.by_path.keys() - new.by_path.keys()}
    come = {path: new.by_path[path] for path in new.by_path.keys() - old.by_path.keys()}
    sizes = {file.size for file in gone.values()} & {file.size for file in come.values()} - {0}
    moved_from = [path for path, file in gone.items() if file.size in sizes]
    moved_to = {path for path, file in come.items() if file.size in sizes}
    old.load([*suspects, *moved_from])
    new.load([*suspects, *moved_to])
    changes += [
        FileChange(Change.MODIFIED, path, new.by_path[path].size)
        for path in suspects
        if old.pieces(path) != new.pieces(path) and old.content(path) != new.content(path)
    ]
    sources: dict[bytes, list[bytes]] = {}
    for path in sorted(moved_from, reverse=True):
        sources.setdefault(old.content(path), []).append(path)
    for path in sorted(come):
        same = sources.get(new.content(path)) if path in moved_to else None
        if same:
            source = same.pop()
            del gone[source]
            changes.append(FileChange(Change.RENAMED, path, come[path].size, source))
        else:
            changes.append(FileChange(Change.ADDED, path, come[path].size))
    changes += [FileChange(Change.DELETED, path, file.size) for path, file in gone.items()]
    return sorted(changes, key=lambda change: change.path)


class _Files:
    """The regular files of one version, and where their contents are."""

    def __init__(self, repository: Repository, root: Root) -> None:
        self._repository = repository
        self._root = root
        self._read = stored_reader(repository, root)
        self.by_path = {file.path: file for file in _listed(repository, root, self._read)}
        self._extents: list[Extent] = []

    def load(self, paths: Iterable[bytes]) -> None:
        """Reads the leaves that hold the contents of files."""
        spans: set[int] = set()
        for path in paths:
            for start, length in self.by_path[path].runs:
                spans.update(range(start // SPAN, (start + length - 1) // SPAN + 1))
        for span, leaf in leaves(self._root, self._repository.packs.nodes, above(spans)):
            self._extents += leaf.extents(span * SPAN)

    def pieces(self, path: bytes) -> list[Extent]:
        """Returns which pieces of chunks a file consists of, at positions counted from its own first block with data."""
        found: list[Extent] = []
        at = 0
        for start, length in self.by_path[path].runs:
            first = bisect_right(self._extents, start, key=lambda extent: extent.start) - 1
            for extent in self._extents[max(first, 0) :]:
                if extent.start >= start + length:
                    break
                if extent.end > start:
                    piece = extent.piece(start, start + length)
                    found.append(piece._replace(start=at + piece.start - start))
            at += length
        return found

    def content(self, path: bytes) -> bytes:
        """Returns the SHA-256 of a file's contents, which are read from the store."""
        file, state = self.by_path[path], sha256()
        for start, length in file.runs:
            for at in range(start * BLOCK, (start + length) * BLOCK, _PIECE):
                state.update(self._read(at, min(_PIECE, (start + length) * BLOCK - at)))
        return state.digest()


def _listed(repository: Repository, root: Root, read: Callable[[int, int], bytes]) -> list[File]:
    """Returns the files of a volume: as its file map has them, else as its file system does."""
    try:
        return repository.file_map(root.digest)
    except NotFound:
        return [
            File(entry.path, entry.size, [(start, length) for _, start, length in entry.runs])
            for entry in Ext4Reader(read).walk()
            if entry.kind is MemberKind.FILE
        ]


def _extents(leaf: Leaf | None, base: int) -> list[Extent]:
    return [] if leaf is None else leaf.extents(base)


def _differing(left: list[Extent], right: list[Extent]) -> list[Range]:
    """Returns where two lists of extents of one span differ."""
    edges = sorted({at for extent in (*left, *right) for at in (extent.start, extent.end)})
    found: list[Range] = []
    one, two = iter(left), iter(right)
    a, b = next(one, None), next(two, None)
    for start, end in pairwise(edges):
        while a is not None and a.end <= start:
            a = next(one, None)
        while b is not None and b.end <= start:
            b = next(two, None)
        was = a.piece(start, end) if a is not None and a.start <= start else None
        now = b.piece(start, end) if b is not None and b.start <= start else None
        if was != now:
            if found and found[-1].end == start:
                start = found.pop().start
            found.append(Range(start, end))
    return found
