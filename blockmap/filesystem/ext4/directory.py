"""Directories on disk: one block of entries, or, where these do not fit, leaves in order of the names' hashes below an index.

The form is that of the kernel's htree (Documentation/filesystems/ext4/directory.rst). A later layer moves as little as it can: a
name goes to the leaf of its hash, and only a leaf that overflows is divided, its upper part into new blocks at the end.
"""

import struct
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from itertools import pairwise

import numpy as np

from blockmap.errors import ImageError
from blockmap.filesystem.ext4.name_hash import HALF_MD4, hashes
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
_POINTER = struct.Struct("<II")
_LIMIT = struct.Struct("<HHI")
DOTS_BYTES = 24
"""Bytes of "." and ".." at the beginning of the first block."""
_ROOT_POINTERS = (BLOCK - 32) // 8
_NODE_POINTERS = (BLOCK - 8) // 8
MAX_LEAVES = _ROOT_POINTERS * _NODE_POINTERS
"""Leaves below an index of two levels, the most without the feature `largedir`: 12 million names or more of usual length."""
_FILL_BYTES = BLOCK * 4 // 5
"""Bytes of entries in a leaf that was divided, at most: `e2fsck -D` leaves a fifth as well, for names to come."""

DirectoryRecord = tuple[bytes, int, MemberKind]
"""An entry: name, inode number, kind."""


def entries_bytes(names: Iterable[bytes]) -> int:
    """Returns the bytes that the entries of names take."""
    return sum(8 + (len(name) + 3 & ~3) for name in names)


def block(entries: Iterable[DirectoryRecord], dots: tuple[int, int] | None = None) -> bytes:
    """Returns one block with `entries` in order; `dots` are the inodes of "." and ".." in the first block."""
    data = bytearray(BLOCK)
    at = last = length = 0
    if dots is not None:
        entries = [(b".", dots[0], MemberKind.DIR), (b"..", dots[1], MemberKind.DIR), *entries]
    for name, number, kind in entries:
        last, length = at, 8 + (len(name) + 3 & ~3)
        _ENTRY.pack_into(data, at, number, length, len(name), _TYPES[kind])
        data[at + 8 : at + 8 + len(name)] = name
        at += length
    struct.pack_into("<H", data, last + 4, BLOCK - last)  # the last entry, or an empty one, reaches the end
    return bytes(data)


class SortedNames:
    """The names of a directory in the order of its leaves: by hash, then by bytes."""

    __slots__ = ("hashes", "names")

    def __init__(self, names: Collection[bytes]) -> None:
        given = list(names)
        found = hashes(given)
        order = np.argsort(found, kind="stable")
        self.hashes = found[order]
        self.names = [given[at] for at in order.tolist()]
        # Names of one hash, of which there are few, come together in the order in which they were given.
        for at in np.flatnonzero(self.hashes[1:] == self.hashes[:-1]).tolist():
            start, end = self.equal(int(self.hashes[at]))
            if start == at:
                self.names[start:end] = sorted(self.names[start:end])

    def equal(self, value: int) -> tuple[int, int]:
        """Returns the places of the names with a hash."""
        start, end = (int(np.searchsorted(self.hashes, np.uint32(value), side)) for side in ("left", "right"))
        return start, end


class HashTree:
    """The leaves of a directory that is hashed, and the index above them."""

    __slots__ = ("_leaves", "_nodes", "_starts", "blocks")

    def __init__(self) -> None:
        self.blocks = 2
        """Blocks of the directory so far; the first is the root of the index."""
        self._starts: list[tuple[int, bytes]] = [(0, b"")]
        """Where each leaf begins, ascending: a hash, and a name if there are names with that hash in the leaf before."""
        self._leaves = [1]
        self._nodes: list[int] = []
        """Blocks of the index's second level, which is there if the root has no room for all leaves."""

    def grow(self, names: Collection[bytes], least_blocks: int, path: object) -> None:
        """Divides leaves that `names` overflow, and makes at least `least_blocks` blocks. Raises ImageError, with `path`."""
        found = SortedNames(names)
        sizes = np.fromiter((8 + (len(name) + 3 & ~3) for name in found.names), dtype=np.int64, count=len(found.names))
        ends = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(sizes)))
        starts, leaves = self._starts, self._leaves
        self._starts, self._leaves = [], []
        for start, leaf, (first, end) in zip(starts, leaves, pairwise(_edges(starts, found)), strict=True):
            self._starts.append(start)
            self._leaves.append(leaf)
            size = int(ends[end] - ends[first])
            pieces = -(-size // _FILL_BYTES) if size > BLOCK else 1
            if len(leaves) == 1:
                pieces = max(pieces, least_blocks - 1)
            for piece in range(1, pieces):
                at = int(np.searchsorted(ends, ends[first] + size * piece // pieces))
                value = int(found.hashes[at])
                shared = at > first and value == found.hashes[at - 1]
                self._starts.append((value, found.names[at] if shared else b""))
                self._leaves.append(self.blocks)
                self.blocks += 1
        if len(self._leaves) > MAX_LEAVES:
            raise ImageError(f"{path}: has {len(names)} entries, more than a directory of ext4 holds: use several")
        while len(self._leaves) > max(_ROOT_POINTERS, len(self._nodes) * _NODE_POINTERS):
            self._nodes.append(self.blocks)
            self.blocks += 1

    def renderer(
        self, names: Collection[bytes], entry: Callable[[bytes], DirectoryRecord], dots: tuple[int, int]
    ) -> Callable[[int], bytes]:
        """Returns what gives each block of the directory by its number, when it has `names`."""
        found = SortedNames(names)
        edges = _edges(self._starts, found)
        places = {leaf: at for at, leaf in enumerate(self._leaves)}
        share = -(-len(self._leaves) // max(1, len(self._nodes)))

        def render(number: int) -> bytes:
            if number in places:
                first, end = edges[places[number]], edges[places[number] + 1]
                return block(map(entry, found.names[first:end]))
            if number:
                node = self._nodes.index(number)
                return _node(self._pointers(node * share, (node + 1) * share))
            if not self._nodes:
                return _root(self._pointers(0, share), 0, dots)
            tops = [(self._hash(at * share), node) for at, node in enumerate(self._nodes)]
            return _root(tops, 1, dots)

        return render

    def _pointers(self, first: int, end: int) -> list[tuple[int, int]]:
        return [(self._hash(at), self._leaves[at]) for at in range(first, min(end, len(self._leaves)))]

    def _hash(self, at: int) -> int:
        """Returns the least hash of a leaf as the index has it; the lowest bit tells that the leaf before has it too."""
        value, name = self._starts[at]
        return value | bool(name)


def _edges(starts: list[tuple[int, bytes]], found: SortedNames) -> list[int]:
    """Returns the place of each leaf's first name, and the end of all."""
    wanted = np.fromiter((value for value, _ in starts), dtype=np.uint32, count=len(starts))
    edges: list[int] = np.searchsorted(found.hashes, wanted, "left").tolist()
    for at, (value, name) in enumerate(starts):
        if name:
            edges[at] = bisect_left(found.names, name, *found.equal(value))
    return [*edges, len(found.names)]


def _root(pointers: list[tuple[int, int]], levels: int, dots: tuple[int, int]) -> bytes:
    """Returns the first block of a hashed directory: "." and "..", behind which the root of the index is hidden."""
    head = block([], dots)[:DOTS_BYTES] + struct.pack("<IBBBB", 0, HALF_MD4, 8, levels, 0)
    return _index(head, pointers, _ROOT_POINTERS)


def _node(pointers: list[tuple[int, int]]) -> bytes:
    """Returns a block of the index's second level, which looks like an empty block of entries."""
    return _index(_ENTRY.pack(0, BLOCK, 0, 0), pointers, _NODE_POINTERS)


def _index(head: bytes, pointers: list[tuple[int, int]], room: int) -> bytes:
    """Returns an index block; the hash of its first pointer is not stored, since the count is in its place."""
    first = _LIMIT.pack(room, len(pointers), pointers[0][1])
    return (head + first + b"".join(_POINTER.pack(*pointer) for pointer in pointers[1:])).ljust(BLOCK, b"\0")
