"""Writes a volume while its layers stream by.

A layer's contents go to the sink as they come, at a cursor that only moves up. The layer's directory blocks, long symlinks,
attribute blocks and extent-tree blocks follow them: they are allocated when the layer ends, and written when all layers are
known, because an upper layer may remove the files they list. The fixed metadata comes last. The blocks of a layer depend on
that layer and those below it, so equal layers below different ones have equal blocks.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from blockmap.errors import ImageError
from blockmap.filesystem.ext4 import directory, inode, xattr
from blockmap.filesystem.ext4.contents import write_contents
from blockmap.filesystem.ext4.geometry import GROUP_BLOCKS, GROUP_INODES, MAX_GROUPS, Cursor, Runs, as_ranges
from blockmap.filesystem.ext4.metadata import FIRST_INODE, JOURNAL_BLOCKS, Metadata
from blockmap.filesystem.inodes import DirectoryInode, Inode
from blockmap.filesystem.member import Member, MemberKind, Members
from blockmap.filesystem.merge import Tree
from blockmap.filesystem.sink import BlockSink

BLOCK = 4096
WRITER = 2
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
    files: Iterable[tuple[bytes, int, Runs]]
    """Path, bytes, and (start, length) in blocks of every name of a regular file, sorted by path; made while they are read."""
    used_blocks: int
    """Blocks that the file system counts as used, with the fixed metadata."""
    inodes: int
    """Number of inodes of the image: files, directories and others; lost+found is one of them."""
    layer_blocks: list[tuple[int, int]]
    """Half-open range of blocks of each layer's contents; fixed ranges between them are included."""


@dataclass(slots=True, eq=False)
class _Place:
    """The blocks of an inode, if they are more than the contents of a file in one piece, or one block of a directory."""

    runs: Runs = field(default_factory=list)
    tree: directory.HashTree | None = None
    """The leaves and index of a directory that has more than a block of entries, or had."""
    symlink: int = 0
    xattr: int = 0
    leaves: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Files:
    """Lists the files of a tree that is complete; a list would take as much memory as the tree."""

    tree: Tree

    def __iter__(self) -> Iterator[tuple[bytes, int, Runs]]:
        for path, node in self.tree.walk():
            if node.kind is MemberKind.FILE:
                yield path, node.size, _runs(node)


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
        self._rendered: tuple[DirectoryInode, Callable[[int], bytes]] | None = None
        self._begin()

    def layer(self, members: Members) -> None:
        """Merges one more layer. Raises ImageError for members that no file system can hold."""
        sink = self._sink
        self._tree.begin_layer()
        sink.cut()
        start = self._cursor.block
        for member, contents in members:
            runs = self._add(member)
            if runs:
                write_contents(sink, runs, member.size, contents, self._threshold)
        sink.cut()
        self._layer_blocks.append((start, self._cursor.block))
        self._end_layer()

    def locate(self, members: Iterable[Member]) -> Iterator[Runs]:
        """Merges one more layer without its contents, and yields where `layer` would write those of each member.

        Whoever goes on to `finish` knows which chunks are there. Raises ImageError as `layer` does.
        """
        self._tree.begin_layer()
        start = self._cursor.block
        for member in members:
            yield self._add(member)
        self._layer_blocks.append((start, self._cursor.block))
        self._end_layer()

    def _add(self, member: Member) -> Runs:
        """Adds a member to the tree, and returns the blocks of its contents."""
        owner = self._tree.add(member)
        if owner is None or not member.size:
            return []
        runs = self._room(owner, -(-member.size // BLOCK))
        if len(runs) == 1 and runs[0][1] <= inode.MAX_EXTENT:
            owner.block = runs[0][0]
        else:
            _place(owner).runs = runs
        self._contents.append(owner)
        return runs

    def finish(self, uuid: bytes) -> Ext4Volume:
        """Writes all metadata. Raises ImageError if the image is too big."""
        nodes: list[Inode | None] = [None] * self._next
        for _, node in self._tree.walk():
            nodes[node.number] = node
        count = len(nodes) - nodes.count(None)
        groups = self._groups(count)
        metadata = Metadata(uuid, groups, self._journal, self._pointers)
        for node in self._contents:
            if node.links:
                for start, length in _runs(node):
                    metadata.use(start, length)
        for part in self._parts:
            self._sink.cut()
            for block, owner, what, number in part:
                data = self._render(owner, what, number) if owner.links else b""
                if data:
                    metadata.use(block, 1)
                    self._sink.write(block, data)
        self._sink.cut()
        for at, found in enumerate(nodes):
            if found is not None:
                metadata.use_inode(at, found.kind is MemberKind.DIR)

        def encoded(number: int) -> bytes:
            node = nodes[number] if number < len(nodes) else None
            return b"" if node is None else self._inode(node)

        metadata.write(self._sink, encoded)
        hidden = [run for node in self._contents if not node.links for run in _runs(node)]
        size, used = groups * GROUP_BLOCKS, metadata.used_blocks()
        return Ext4Volume(size, as_ranges(hidden), _Files(self._tree), used, count, self._layer_blocks)

    def _room(self, node: Inode, blocks: int) -> Runs:
        """Allocates blocks for a file's contents; a header may state any size, so impossible ones are refused first."""
        if self._cursor.block + blocks > MAX_GROUPS * GROUP_BLOCKS:
            raise ImageError(
                f"{_Path(self._tree, node)}: with its {blocks * BLOCK} bytes the image is too big for its volume, of which "
                "1 TiB is the most: make the image without it"
            )
        runs = self._cursor.take(blocks)
        if len(runs) > 1:
            inode.leaf_blocks(runs, _Path(self._tree, node))
        return runs

    def _begin(self) -> None:
        """Makes the root, and the lost+found that e2fsck looks for."""
        root, tree = self._tree.root, self._tree
        root.number = 2
        found = tree.make(root, b"lost+found", MemberKind.DIR)
        assert isinstance(found, DirectoryInode)
        found.mode, found.number = 0o700, FIRST_INODE
        part: _Part = []
        self._parts.append(part)
        self._extend(found, _LOST_FOUND_BLOCKS, part)
        self._extend(root, 1, part)

    def _end_layer(self) -> None:
        tree = self._tree
        made = [node for node in tree.made if node.links]
        directories = sorted(
            (node for node in tree.touched if node.links and node.number), key=lambda node: node.number
        )
        directories += [node for node in made if isinstance(node, DirectoryInode)]
        others = [node for node in made if node.kind is not MemberKind.DIR]
        for nodes in (directories, others):
            for node in nodes:
                if not node.number:
                    node.number = self._next
                    self._next += 1
        part: _Part = []
        self._parts.append(part)
        for node in directories:
            self._extend(node, self._blocks_wanted(node), part)
        for node in others:
            if node.kind is MemberKind.SYMLINK and len(node.target) >= inode.FAST_SYMLINK:
                _place(node).symlink = self._one(part, node, "symlink")
        for nodes in (directories, others):
            for node in nodes:
                if node.xattrs and xattr.encode(node.xattrs, _Path(tree, node))[1] and not _place(node).xattr:
                    _place(node).xattr = self._one(part, node, "xattr")
        for nodes in (directories, others):
            for node in nodes:
                if node.place is not None:
                    place = _place(node)
                    while len(place.leaves) < inode.leaf_blocks(place.runs, _Path(tree, node)):
                        place.leaves.append(self._one(part, node, "leaf", len(place.leaves)))

    def _blocks_wanted(self, node: DirectoryInode) -> int:
        """Returns the number of blocks that a directory needs now; one that outgrows its first block is hashed from then on."""
        tree = node.place.tree if isinstance(node.place, _Place) else None
        if tree is None:
            if directory.DOTS_BYTES + directory.entries_bytes(node.children) <= BLOCK:
                return 1
            tree = _place(node).tree = directory.HashTree()
        tree.grow(node.children, _length(_runs(node)), _Path(self._tree, node))
        return tree.blocks

    def _extend(self, node: DirectoryInode, blocks: int, part: _Part) -> None:
        """Gives a directory more blocks, so that it has as many as `blocks`."""
        before = _runs(node)
        have = _length(before)
        if blocks <= have:
            return
        runs = self._cursor.take(blocks - have)
        part.extend((block, node, "directory", have + at) for at, block in enumerate(_blocks(runs)))
        if blocks == 1:
            node.block = runs[0][0]
        else:
            node.block, _place(node).runs = 0, before + runs

    def _one(self, part: _Part, node: Inode, what: str, number: int = 0) -> int:
        ((block, _),) = self._cursor.take(1)
        part.append((block, node, what, number))
        return block

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
        if what == "symlink":
            return node.target.ljust(BLOCK, b"\0")
        if what == "leaf":
            return inode.leaf(inode.split_runs(_runs(node)), number)
        if what == "xattr":
            return xattr.encode(node.xattrs, _Path(self._tree, node))[1]
        assert isinstance(node, DirectoryInode)
        dots = node.number, node.parent.number
        tree = node.place.tree if isinstance(node.place, _Place) else None
        if tree is None:
            entries = map(partial(_entry, node), node.children) if number == 0 else ()
            return directory.block(entries, dots if number == 0 else None)
        if self._rendered is None or self._rendered[0] is not node:
            self._rendered = node, tree.renderer(node.children, partial(_entry, node), dots)
        return self._rendered[1](number)

    def _inode(self, node: Inode) -> bytes:
        path = _Path(self._tree, node)
        links, size, runs = node.links, node.size, _runs(node)
        place = node.place if isinstance(node.place, _Place) else _Place()
        inline, block = xattr.encode(node.xattrs, path)
        if node.kind is MemberKind.DIR:
            links = 2 + sum(child.kind is MemberKind.DIR for child in node.children.values())
            size = _length(runs) * BLOCK
        elif node.kind is MemberKind.SYMLINK:
            size = len(node.target)
            runs = [(place.symlink, 1)] if place.symlink else []
        return inode.encode(
            node, path, links, size, inode.split_runs(runs), place.leaves, place.xattr if block else 0, inline,
            is_hashed=place.tree is not None,
        )  # fmt: skip


class _Path:
    """An inode's path for a message, searched for only when an error is reported."""

    def __init__(self, tree: Tree, node: Inode) -> None:
        self._tree, self._node = tree, node

    def __str__(self) -> str:
        return next(
            (repr(path.decode("utf-8", "backslashreplace")) for path, at in self._tree.walk() if at is self._node), "?"
        )


def _place(node: Inode) -> _Place:
    if node.place is None:
        node.place = _Place()
    assert isinstance(node.place, _Place)
    return node.place


def _runs(node: Inode) -> Runs:
    """Returns the runs of a file's contents or a directory."""
    if node.block:
        return [(node.block, 1 if node.kind is MemberKind.DIR else -(-node.size // BLOCK))]
    return node.place.runs if isinstance(node.place, _Place) else []


def _entry(node: DirectoryInode, name: bytes) -> directory.DirectoryRecord:
    child = node.children[name]
    return name, child.number, child.kind


def _length(runs: Runs) -> int:
    return sum(length for _, length in runs)


def _blocks(runs: Runs) -> Iterator[int]:
    for start, length in runs:
        yield from range(start, start + length)
