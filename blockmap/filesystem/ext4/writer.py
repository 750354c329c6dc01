"""Writes a volume while its layers stream by.

A layer's contents go to the sink as they come, at a cursor that only moves up. The layer's directory blocks, long symlinks,
attribute blocks and extent-tree blocks follow them: they are allocated when the layer ends, and written when all layers are
known, because an upper layer may remove the files they list. The fixed metadata comes last. The blocks of a layer depend on
that layer and those below it, so equal layers below different ones have equal blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from blockmap.errors import ImageError
from blockmap.filesystem.ext4 import directory, inode, xattr
from blockmap.filesystem.ext4.geometry import GROUP_BLOCKS, GROUP_INODES, MAX_GROUPS, Cursor, Runs, as_ranges
from blockmap.filesystem.ext4.metadata import FIRST_INODE, JOURNAL_BLOCKS, Metadata
from blockmap.filesystem.member import MemberKind, Members
from blockmap.filesystem.merge import Inode, Tree
from blockmap.filesystem.sink import BlockSink

BLOCK = 4096
WRITER = 1
"""Number of the layout's rules; it changes when the same image would get other blocks."""
_MIN_GROUPS = 128
_GIB_GROUPS = 8
_LOST_FOUND_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Ext4Volume:
    """A volume that was written."""

    size_blocks: int
    hidden: list[tuple[int, int]]
    """Half-open ranges, ascending, of contents that upper layers hide: written, but free in the file system."""
    files: list[tuple[bytes, int, Runs]]
    """Path, bytes, and (start, length) in blocks of every name of a regular file, sorted by path."""
    used_blocks: int
    """Blocks that the file system counts as used, with the fixed metadata."""
    inodes: int
    """Number of inodes of the image: files, directories and others; lost+found is one of them."""
    layer_blocks: list[tuple[int, int]]
    """Half-open range of blocks of each layer's contents; fixed ranges between them are included."""


@dataclass(slots=True, eq=False)
class _Place:
    """The blocks of an inode on disk."""

    number: int = 0
    runs: Runs = field(default_factory=list)
    names: directory.Places | None = None
    symlink: int = 0
    xattr: int = 0
    leaves: list[int] = field(default_factory=list)


_Part = list[tuple[int, Inode, str, int]]
"""Blocks that follow a layer's contents: block, inode, kind of block, its number among those."""


class Ext4Writer:
    """Writes layers from the bottom up, then the metadata."""

    def __init__(self, sink: BlockSink, threshold_blocks: int) -> None:
        self._sink = sink
        self._threshold = threshold_blocks
        self._tree = Tree()
        self._cursor = Cursor()
        self._parts: list[_Part] = []
        self._contents: list[Inode] = []
        self._layer_blocks: list[tuple[int, int]] = []
        ((self._journal, _),) = self._cursor.take(JOURNAL_BLOCKS)
        ((self._pointers, _),) = self._cursor.take(1)
        self._next = FIRST_INODE + 1
        self._rendered: tuple[Inode, dict[int, list[directory.Placed]]] | None = None
        self._begin()

    def layer(self, members: Members) -> None:
        """Merges one more layer. Raises ImageError for members that no file system can hold."""
        tree, sink = self._tree, self._sink
        tree.begin_layer()
        sink.cut()
        start = self._cursor.block
        for member, contents in members:
            owner = tree.add(member)
            if owner is not None:
                place = owner.place = _Place()
                if member.size:
                    place.runs = self._room(owner, -(-member.size // BLOCK))
                    self._contents.append(owner)
                    self._stream(place.runs, member.size, contents)
        sink.cut()
        self._layer_blocks.append((start, self._cursor.block))
        self._end_layer()

    def finish(self, uuid: bytes) -> Ext4Volume:
        """Writes all metadata. Raises ImageError if the image is too big."""
        paths: dict[Inode, bytes] = {}
        files: list[tuple[bytes, int, Runs]] = []
        for path, node in self._tree.walk():
            paths.setdefault(node, path)
            if node.kind is MemberKind.FILE:
                files.append((path, node.size, _place(node).runs))
        files.sort(key=lambda file: file[0])
        groups = self._groups(len(paths))
        metadata = Metadata(uuid, groups, self._journal, self._pointers)
        for node in self._contents:
            if node.links:
                for start, length in _place(node).runs:
                    metadata.use(start, length)
        for part in self._parts:
            self._sink.cut()
            for block, node, what, number in part:
                data = self._render(node, what, number) if node.links else b""
                if data:
                    metadata.use(block, 1)
                    self._sink.write(block, data)
        self._sink.cut()
        for node, path in paths.items():
            metadata.inode(_place(node).number, self._inode(node, path), node.kind is MemberKind.DIR)
        metadata.write(self._sink)
        hidden = [run for node in self._contents if not node.links for run in _place(node).runs]
        size, used = groups * GROUP_BLOCKS, metadata.used_blocks()
        return Ext4Volume(size, as_ranges(hidden), files, used, len(paths), self._layer_blocks)

    def _room(self, node: Inode, blocks: int) -> Runs:
        """Allocates blocks for a file's contents; a header may state any size, so impossible ones are refused first."""
        path = _Path(self._tree, node)
        if self._cursor.block + blocks > MAX_GROUPS * GROUP_BLOCKS:
            raise ImageError(
                f"{path}: with its {blocks * BLOCK} bytes the image is too big for its volume, of which 1 TiB is the most: "
                "make the image without it"
            )
        runs = self._cursor.take(blocks)
        inode.leaf_blocks(runs, path)
        return runs

    def _begin(self) -> None:
        """Makes the root, and the lost+found that e2fsck looks for."""
        root, tree = self._tree.root, self._tree
        root.place = _Place(number=2, names=directory.Places())
        found = tree.make(root, b"lost+found", MemberKind.DIR)
        found.mode = 0o700
        names = directory.Places()
        names.blocks, names.offset = _LOST_FOUND_BLOCKS, BLOCK
        place = found.place = _Place(FIRST_INODE, self._cursor.take(_LOST_FOUND_BLOCKS), names)
        part: _Part = [(block, found, "directory", at) for at, block in enumerate(_blocks(place.runs))]
        self._parts.append(part)
        self._place_directory(root, part)

    def _end_layer(self) -> None:
        tree = self._tree
        made = [node for node in tree.made if node.links]
        for node in [node for node in made if node.kind is MemberKind.DIR] + [
            n for n in made if n.kind is not MemberKind.DIR
        ]:
            place = node.place if isinstance(node.place, _Place) else _Place()
            place.number = self._next
            self._next += 1
            node.place = place
            if node.kind is MemberKind.DIR:
                place.names = directory.Places()
        part: _Part = []
        self._parts.append(part)
        touched = {node: None for node in (*tree.touched, *made) if node.links and node.kind is MemberKind.DIR}
        directories = sorted(touched, key=lambda node: _place(node).number)
        for node in directories:
            self._place_directory(node, part)
        for node in made:
            if node.kind is MemberKind.SYMLINK and len(node.target) >= inode.FAST_SYMLINK:
                _place(node).symlink = self._one(part, node, "symlink")
        described = dict.fromkeys((*directories, *made))
        for node in sorted(described, key=lambda node: _place(node).number):
            place = _place(node)
            if not place.xattr and node.xattrs and xattr.encode(node.xattrs, _Path(tree, node))[1]:
                place.xattr = self._one(part, node, "xattr")
        for node in sorted(described, key=lambda node: _place(node).number):
            place = _place(node)
            while len(place.leaves) < inode.leaf_blocks(place.runs, _Path(tree, node)):
                block = self._one(part, node, "leaf", len(place.leaves))
                place.leaves.append(block)

    def _place_directory(self, node: Inode, part: _Part) -> None:
        place = _place(node)
        assert place.names is not None
        place.names.update(node.children)
        have = sum(length for _, length in place.runs)
        if place.names.blocks > have:
            runs = self._cursor.take(place.names.blocks - have)
            part.extend((block, node, "directory", have + at) for at, block in enumerate(_blocks(runs)))
            place.runs.extend(runs)

    def _one(self, part: _Part, node: Inode, what: str, number: int = 0) -> int:
        ((block, _),) = self._cursor.take(1)
        part.append((block, node, what, number))
        return block

    def _stream(self, runs: Runs, size: int, contents: Iterator[bytes]) -> None:
        """Writes a file's contents; the last block is filled up with zeros."""
        sink = self._sink
        edges = self._threshold and sum(length for _, length in runs) >= self._threshold
        if edges:
            sink.cut()
        waiting = iter(runs)
        block, room = next(waiting)
        rest = b""
        left = size
        for data in contents:
            left -= len(data)
            if rest:
                data = rest + data
            if not left:
                data = bytes(data) + bytes(-len(data) % BLOCK)
            view = memoryview(data)
            while len(view) >= BLOCK:
                count = min(len(view) // BLOCK, room)
                sink.write(block, view[: count * BLOCK])
                view = view[count * BLOCK :]
                block, room = block + count, room - count
                if not room:
                    block, room = next(waiting, (0, 0))
                    if not room:
                        break
            rest = bytes(view)
        if left or rest:
            raise ImageError(f"a file of {size} bytes came with {size - left} bytes of content")
        if edges:
            sink.cut()

    def _groups(self, inodes: int) -> int:
        """Returns the number of groups: twice the blocks written, in whole GiB, so that the volume has room."""
        last = self._cursor.block
        groups = max(_MIN_GROUPS, -(-2 * last // GROUP_BLOCKS), -(-self._next // GROUP_INODES))
        groups = -(-groups // _GIB_GROUPS) * _GIB_GROUPS
        if last > MAX_GROUPS * GROUP_BLOCKS or self._next > MAX_GROUPS * GROUP_INODES:
            raise ImageError(
                f"the image is too big for its volume: {last * BLOCK >> 30} GiB and {inodes} files, where 1 TiB and "
                f"{MAX_GROUPS * GROUP_INODES} files fit"
            )
        return min(groups, MAX_GROUPS)

    def _render(self, node: Inode, what: str, number: int) -> bytes:
        """Returns one of the blocks that follow a layer's contents; empty if an upper layer made it superfluous."""
        place = _place(node)
        if what == "symlink":
            return node.target.ljust(BLOCK, b"\0")
        if what == "leaf":
            return inode.leaf(inode.split_runs(place.runs), number)
        if what == "xattr":
            return xattr.encode(node.xattrs, _Path(self._tree, node))[1]
        assert place.names is not None
        entries = self._entries(node, place.names).get(number, [])
        return directory.block(entries, (place.number, _place(node.parent).number) if number == 0 else None)

    def _entries(self, node: Inode, names: directory.Places) -> dict[int, list[directory.Placed]]:
        """Returns the entries of a directory by block, sorted by offset."""
        cached = self._rendered
        if cached is None or cached[0] is not node:
            by_block: dict[int, list[directory.Placed]] = {}
            for name, (block, offset) in names.of.items():
                child = node.children[name]
                by_block.setdefault(block, []).append((offset, name, _place(child).number, child.kind))
            cached = self._rendered = (node, by_block)
        return cached[1]

    def _inode(self, node: Inode, path: bytes) -> bytes:
        place = _place(node)
        text = repr(path.decode("utf-8", "backslashreplace"))
        links, size, extents = node.links, 0, inode.split_runs(place.runs)
        inline, block = xattr.encode(node.xattrs, text)
        if node.kind is MemberKind.DIR:
            links = 2 + sum(child.kind is MemberKind.DIR for child in node.children.values())
            size = sum(length for _, length in place.runs) * BLOCK
        elif node.kind is MemberKind.FILE:
            size = node.size
        elif node.kind is MemberKind.SYMLINK:
            size = len(node.target)
            extents = [(0, place.symlink, 1)] if place.symlink else []
        return inode.encode(node, text, links, size, extents, place.leaves, place.xattr if block else 0, inline)


class _Path:
    """An inode's path for a message, searched for only when an error is reported."""

    def __init__(self, tree: Tree, node: Inode) -> None:
        self._tree, self._node = tree, node

    def __str__(self) -> str:
        return next(
            (repr(path.decode("utf-8", "backslashreplace")) for path, at in self._tree.walk() if at is self._node), "?"
        )


def _place(node: Inode) -> _Place:
    assert isinstance(node.place, _Place)
    return node.place


def _blocks(runs: Runs) -> Iterator[int]:
    for start, length in runs:
        yield from range(start, start + length)
