"""Layers merged into one tree of inodes, as a container engine would unpack them, without unpacking anything.

The rules, which `image.compare` follows as well (OCI image-spec, layer.md, and what engines make of it):

1. Members take effect in the order of the archive. A member's parents may lead through symlinks, which are followed inside
   the root; missing parents are made.
2. A whiteout or opaque mark hides what lower layers have at its path, and nothing of its own layer, wherever it stands.
   The path is looked up in the tree that the lower layers left: through their symlinks, unless this layer replaced them,
   and not through this layer's own. A whiteout makes nothing, and one of nothing does nothing.
3. A hard link's target is looked up in the tree as it stands, then in the one that the lower layers left. It remains a
   link to that file, whatever hides or replaces the target.
4. What aufs kept in its branches (names that begin with `.wh..wh.`) is no part of the image. The files in its directory of
   pseudo-links become files where links of the same layer lead to them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

from blockmap.errors import ImageError
from blockmap.filesystem.member import Member, MemberKind
from blockmap.filesystem.paths import MAX_PATH, MAX_TARGET, check_name, check_path, show

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_MAX_SYMLINKS = 40
_AUFS = re.compile(rb"(?:^|/)\.wh\.\.wh\.(?!\.opq\Z)")
"""Matches paths that are aufs's own, or below one."""
_BELOW_WHITEOUT = re.compile(rb"(?:^|/)\.wh\.[^/]*/")
_NOTHING: Mapping[bytes, Any] = MappingProxyType({})
"""Stands for the dictionaries of inodes that need none: images have millions of them."""


class Inode:
    """A file, directory or other object with all its names."""

    __slots__ = (
        "children", "gid", "kind", "layers", "links", "major", "minor", "mode", "mtime_ns", "mtime_s", "parent", "place",
        "size", "target", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, kind: MemberKind) -> None:
        self.kind = kind
        self.mode = 0o755
        self.uid = self.gid = 0
        self.mtime_s = self.mtime_ns = 0
        self.size = 0
        self.target = b""
        self.major = self.minor = 0
        self.xattrs: Mapping[bytes, bytes] = _NOTHING
        self.links = 0
        """Number of its names; 0 if it was removed."""
        directory = kind is MemberKind.DIR
        self.children: dict[bytes, Inode] = {} if directory else cast(Any, _NOTHING)
        """Children of a directory, in order of insertion."""
        self.layers: dict[bytes, int] = {} if directory else cast(Any, _NOTHING)
        """The layer that added each child of a directory, or last declared it."""
        self.parent: Inode = self
        """The parent of a directory; the root is its own."""
        self.place: object = None
        """Data of the file system's writer about the inode."""

    def describe(self, member: Member) -> None:
        """Sets the attributes to those of a member."""
        self.mode, self.uid, self.gid = member.mode, member.uid, member.gid
        self.mtime_s, self.mtime_ns = member.mtime_s, member.mtime_ns
        self.size, self.target = member.size, member.target
        self.major, self.minor = member.major, member.minor
        self.xattrs = member.xattrs or _NOTHING

    def reset(self) -> None:
        """Sets the attributes to those of a directory that no member describes."""
        self.mode, self.uid, self.gid, self.mtime_s, self.mtime_ns, self.xattrs = 0o755, 0, 0, 0, 0, _NOTHING


class Tree:
    """The merged tree; callers `add` members layer by layer."""

    def __init__(self) -> None:
        self.root = Inode(MemberKind.DIR)
        self.root.links = 1
        self.layer = -1
        self.made: list[Inode] = []
        """Inodes that the present layer added, in order; some may be removed again."""
        self.touched: dict[Inode, None] = {}
        """Directories whose children or attributes the present layer changed."""
        self._below: dict[tuple[Inode, bytes], Inode | None] = {}
        """What lower layers have at the names that the present layer changed."""
        self._released: list[Inode] = []
        """Directories that the present layer removed."""
        self._aufs: dict[bytes, Inode] = {}
        """Files of the present layer's directory of pseudo-links, by path."""
        self._parents: dict[bytes, Inode] = {}  # directories by path as written; emptied when a path may lead elsewhere

    def begin_layer(self) -> None:
        self.layer += 1
        self.made = []
        self.touched = {}
        for gone in self._released:
            gone.children, gone.layers = {}, {}
        self._below, self._aufs, self._released = {}, {}, []

    def add(self, member: Member) -> Inode | None:
        """Adds one member, and returns the inode that its contents belong to. Raises ImageError for an impossible member."""
        if not member.path:
            if member.kind is not MemberKind.DIR:
                raise ImageError(f"the root of a layer is a {member.kind.value}: a directory is expected")
            self.root.describe(member)
            self.touched[self.root] = None
            return None
        check_path(member.path, member.path)
        above, _, name = member.path.rpartition(b"/")
        if b".wh." in member.path:
            if _AUFS.search(member.path):
                return self._keep_aufs(member)
            if name.startswith(WHITEOUT):
                self._whiteout(above, name, member.path)
                return None
            if _BELOW_WHITEOUT.search(member.path):
                raise ImageError(
                    f"{show(member.path)}: is below a whiteout, which is no directory: the layer is damaged"
                )
        parent = self._directory(above, member.path)
        check_name(name, member.path)
        if member.kind is MemberKind.HARDLINK:
            self._link(parent, name, member)
            return None
        old = parent.children.get(name)
        self.touched[parent] = None
        if old is not None and old.kind is MemberKind.DIR and member.kind is MemberKind.DIR:
            old.describe(member)
            self._declare(parent, name)
            self.touched[old] = None
            return None
        if member.kind is MemberKind.SYMLINK and (not 0 < len(member.target) <= MAX_TARGET or b"\0" in member.target):
            raise ImageError(
                f"{show(member.path)}: a symlink's target has 1 to {MAX_TARGET} bytes that are not zero, this has "
                f"{len(member.target)}: {show(member.target[:80])}"
            )
        inode = self.make(parent, name, member.kind)
        inode.describe(member)
        return inode if member.kind is MemberKind.FILE else None

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Yields every path with its inode, parents first, sorted by name within a directory. Raises ImageError for a long path."""
        waiting: list[tuple[bytes, Inode]] = [(b"", self.root)]
        while waiting:
            path, inode = waiting.pop()
            if len(path) > MAX_PATH:
                raise ImageError(f"{show(path[:80])}...: its path has {len(path)} bytes, {MAX_PATH} are allowed")
            yield path, inode
            if inode.children:
                prefix = path + b"/" if path else b""
                waiting.extend((prefix + name, inode.children[name]) for name in sorted(inode.children, reverse=True))

    def make(self, parent: Inode, name: bytes, kind: MemberKind) -> Inode:
        """Makes an inode with a name, and replaces the one that has the name."""
        inode = Inode(kind)
        if kind is MemberKind.DIR:
            inode.parent = parent
        self._put(parent, name, inode)
        self.made.append(inode)
        return inode

    def _put(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Gives an inode a name, and replaces the one that has the name."""
        old = parent.children.get(name)
        self._declare(parent, name)
        inode.links += 1
        if old is not None:
            self._release(old)
        if inode.kind is MemberKind.SYMLINK or (old is not None and old.kind in (MemberKind.DIR, MemberKind.SYMLINK)):
            self._parents.clear()
        parent.children[name] = inode
        self.touched[parent] = None

    def _remove(self, parent: Inode, name: bytes) -> None:
        self._declare(parent, name)
        inode = parent.children.pop(name)
        del parent.layers[name]
        self.touched[parent] = None
        if inode.kind in (MemberKind.DIR, MemberKind.SYMLINK):
            self._parents.clear()
        self._release(inode)

    def _release(self, inode: Inode) -> None:
        """Takes a name away from an inode; what is below a directory loses its own, and can still be linked to."""
        waiting = [inode]
        while waiting:
            gone = waiting.pop()
            gone.links -= 1
            if gone.kind is MemberKind.DIR:
                self._released.append(gone)
                waiting.extend(gone.children.values())

    def _whiteout(self, above: bytes, name: bytes, path: bytes) -> None:
        hidden = name[len(WHITEOUT) :]
        if name != OPAQUE:
            if hidden in (b"", b".", b".."):
                raise ImageError(f"{show(path)}: a whiteout must name what it removes")
            check_name(hidden, path)
        parent = self._look_up(above, self._lower_child, follow=True)
        if parent is None or parent.kind is not MemberKind.DIR or not parent.links:
            return
        if name == OPAQUE:
            self._prune(parent, list(parent.children))
        elif hidden in parent.children:
            self._prune(parent, [hidden])

    def _prune(self, directory: Inode, names: list[bytes]) -> None:
        """Removes inodes of lower layers at `names` and below; those of this layer stay."""
        # Not recursive: archives nest deeper than Python's stack. True: everything below has been pruned.
        waiting = [(directory, name, False) for name in names]
        while waiting:
            parent, name, done = waiting.pop()
            inode = parent.children[name]
            if inode.children and not done:
                waiting.append((parent, name, True))
                waiting.extend((inode, child, False) for child in inode.children)
            elif parent.layers[name] == self.layer:
                continue
            elif inode.children:
                inode.reset()
                self._declare(parent, name)
                self.touched[inode] = None
            else:
                self._remove(parent, name)

    def _link(self, parent: Inode, name: bytes, member: Member) -> None:
        check_path(member.target, member.path)
        if _AUFS.search(member.target):
            target = self._aufs.get(member.target)
        else:
            target = self._look_up(member.target, self._child, follow=False)
            target = target or self._look_up(member.target, self._lower_child, follow=False)
        if target is None:
            raise ImageError(f"{show(member.path)}: is a hard link to {show(member.target)}, which does not exist")
        if target.kind is MemberKind.DIR:
            raise ImageError(f"{show(member.path)}: is a hard link to the directory {show(member.target)}")
        if parent.children.get(name) is target:
            self._declare(parent, name)
            return
        self._put(parent, name, target)

    def _keep_aufs(self, member: Member) -> Inode | None:
        """Keeps a file of aufs without a name, for the links that lead to it."""
        if member.kind is not MemberKind.FILE:
            return None
        inode = self._aufs[member.path] = Inode(member.kind)
        inode.describe(member)
        self.made.append(inode)
        return inode

    def _declare(self, parent: Inode, name: bytes) -> None:
        """Notes that the present layer has something at a name, and what lower layers have there."""
        if parent.layers.get(name, self.layer) != self.layer:
            self._below[parent, name] = parent.children[name]
        parent.layers[name] = self.layer

    @staticmethod
    def _child(directory: Inode, name: bytes) -> Inode | None:
        return directory.children.get(name)

    def _lower_child(self, directory: Inode, name: bytes) -> Inode | None:
        """Returns what lower layers have at a name."""
        if directory.layers.get(name) == self.layer or name not in directory.children:
            return self._below.get((directory, name))
        return directory.children[name]

    def _look_up(self, path: bytes, child: Callable[[Inode, bytes], Inode | None], follow: bool) -> Inode | None:
        """Returns the inode at a path, None if there is none; a symlink at its end is followed only with `follow`."""
        at = self.root
        todo = path.split(b"/")[::-1] if path else []
        followed = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                at = at.parent
                continue
            below = child(at, part)
            if below is None:
                return None
            if below.kind is not MemberKind.SYMLINK or not (todo or follow):
                at = below
                continue
            followed += 1
            if followed > _MAX_SYMLINKS or not at.links or at.children.get(part) is not below:
                return None
            if below.target.startswith(b"/"):
                at = self.root
            todo.extend(below.target.split(b"/")[::-1])
        return at

    def _directory(self, path: bytes, of: bytes) -> Inode:
        """Returns the directory at `path`, and makes it if it is missing; `of` is the member that needs it."""
        found = self._parents.get(path)
        if found is None:
            found = self._resolve(path, of)
            self._parents[path] = found
        return found

    def _resolve(self, path: bytes, of: bytes) -> Inode:
        at = self.root
        todo = path.split(b"/")[::-1] if path else []
        followed = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                at = at.parent
                continue
            below = at.children.get(part)
            if below is None:
                check_name(part, of)
                below = self.make(at, part, MemberKind.DIR)
            if below.kind is MemberKind.SYMLINK:
                followed += 1
                if followed > _MAX_SYMLINKS:
                    raise ImageError(f"{show(of)}: its path leads through more than {_MAX_SYMLINKS} symlinks")
                if below.target.startswith(b"/"):
                    at = self.root
                todo.extend(below.target.split(b"/")[::-1])
                continue
            if below.kind is not MemberKind.DIR:
                raise ImageError(f"{show(of)}: {show(part)} on its path is a {below.kind.value}, not a directory")
            at = below
        return at
