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
from collections.abc import Callable, Iterator

from blockmap.errors import ImageError
from blockmap.filesystem.inodes import DirectoryInode, Inode, make_inode
from blockmap.filesystem.kept import KeptMembers
from blockmap.filesystem.member import Member, MemberKind
from blockmap.filesystem.paths import MAX_PATH, MAX_TARGET, check_name, check_path, show

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_MAX_SYMLINKS = 40
_AUFS = re.compile(rb"(?:^|/)\.wh\.\.wh\.(?!\.opq\Z)")
"""Matches paths that are aufs's own, or below one."""
_BELOW_WHITEOUT = re.compile(rb"(?:^|/)\.wh\.[^/]*/")
_PARENTS = 10_000
"""Directories that are kept by path: those of the last members are asked for again, and each path may be long."""


def is_whiteout(path: bytes) -> bool:
    """Returns True for the path of a whiteout or opaque mark, whose content nobody keeps."""
    return path.rpartition(b"/")[2].startswith(WHITEOUT) and not _AUFS.search(path)


class Tree:
    """The merged tree; callers `add` members layer by layer."""

    def __init__(self) -> None:
        self.root = DirectoryInode(None, -1)
        self.root.links = 1
        self.layer = -1
        self.made: list[Inode] = []
        """Inodes that the present layer added, in order; some may be removed again."""
        self.touched: dict[DirectoryInode, None] = {}
        """Directories whose children or attributes the present layer changed."""
        self._own: dict[DirectoryInode, set[bytes]] = {}
        """Names that the present layer has in directories of lower layers; in those that it made, it has them all."""
        self._below: dict[tuple[DirectoryInode, bytes], Inode] = {}
        """What lower layers have at the names that the present layer changed."""
        self._released: list[DirectoryInode] = []
        """Directories that the present layer removed."""
        self._aufs: dict[bytes, Inode] = {}
        """Files of the present layer's directory of pseudo-links, by path."""
        self._parents: dict[bytes, DirectoryInode] = {}  # by path as written; emptied when a path may lead elsewhere
        self._kept = KeptMembers()

    def begin_layer(self) -> None:
        self.layer += 1
        self.made = []
        self.touched = {}
        for gone in self._released:
            gone.children = {}
        self._own, self._below, self._aufs, self._released = {}, {}, {}, []

    def add(self, member: Member) -> Inode | None:
        """Adds one member, and returns the inode that its contents belong to. Raises ImageError for an impossible member."""
        if not member.path:
            if member.kind is not MemberKind.DIR:
                raise ImageError(f"the root of a layer is a {member.kind.value}: a directory is expected")
            self.root.describe(member, self._kept.attributes(member))
            self.touched[self.root] = None
            return None
        check_path(member.path, member.path)
        above, _, name = member.path.rpartition(b"/")
        if b".wh." in member.path:
            if _AUFS.search(member.path):
                return self._keep_aufs(member)
            if is_whiteout(member.path):
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
        if isinstance(old, DirectoryInode) and member.kind is MemberKind.DIR:
            old.describe(member, self._kept.attributes(member))
            self._declare(parent, name)
            self.touched[old] = None
            return None
        if member.kind is MemberKind.SYMLINK and (not 0 < len(member.target) <= MAX_TARGET or b"\0" in member.target):
            raise ImageError(
                f"{show(member.path)}: a symlink's target has 1 to {MAX_TARGET} bytes that are not zero, this has "
                f"{len(member.target)}: {show(member.target[:80])}"
            )
        inode = self.make(parent, name, member.kind)
        inode.describe(member, self._kept.attributes(member))
        return inode if member.kind is MemberKind.FILE else None

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Yields every path with its inode, parents first, files in the order of their paths. Raises ImageError for a long path."""
        yield b"", self.root
        waiting = [(b"", self.root, iter(_in_order(self.root)))]
        while waiting:
            prefix, directory, names = waiting[-1]
            for name in names:
                path, inode = prefix + name, directory.children[name]
                if len(path) > MAX_PATH:
                    raise ImageError(f"{show(path[:80])}...: its path has {len(path)} bytes, {MAX_PATH} are allowed")
                yield path, inode
                if isinstance(inode, DirectoryInode) and inode.children:
                    waiting.append((path + b"/", inode, iter(_in_order(inode))))
                    break
            else:
                waiting.pop()

    def make(self, parent: DirectoryInode, name: bytes, kind: MemberKind) -> Inode:
        """Makes an inode with a name, and replaces the one that has the name. Raises ImageError for one too many."""
        inode = DirectoryInode(parent, self.layer) if kind is MemberKind.DIR else make_inode(kind)
        self._put(parent, name, inode)
        self.made.append(inode)
        return inode

    def _put(self, parent: DirectoryInode, name: bytes, inode: Inode) -> None:
        """Gives an inode a name, and replaces the one that has the name."""
        self._kept.name(name)
        old = parent.children.get(name)
        self._declare(parent, name)
        inode.links += 1
        if old is not None:
            self._release(old)
        if inode.kind is MemberKind.SYMLINK or (old is not None and old.kind in (MemberKind.DIR, MemberKind.SYMLINK)):
            self._parents.clear()
        parent.children[name] = inode
        self.touched[parent] = None

    def _remove(self, parent: DirectoryInode, name: bytes) -> None:
        self._declare(parent, name)
        inode = parent.children.pop(name)
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
            if isinstance(gone, DirectoryInode):
                self._released.append(gone)
                waiting.extend(gone.children.values())

    def _whiteout(self, above: bytes, name: bytes, path: bytes) -> None:
        hidden = name[len(WHITEOUT) :]
        if name != OPAQUE:
            if hidden in (b"", b".", b".."):
                raise ImageError(f"{show(path)}: a whiteout must name what it removes")
            check_name(hidden, path)
        parent = self._look_up(above, self._lower_child, follow=True)
        if not isinstance(parent, DirectoryInode) or not parent.links:
            return
        if name == OPAQUE:
            self._prune(parent, list(parent.children))
        elif hidden in parent.children:
            self._prune(parent, [hidden])

    def _prune(self, directory: DirectoryInode, names: list[bytes]) -> None:
        """Removes inodes of lower layers at `names` and below; those of this layer stay."""
        # Not recursive: archives nest deeper than Python's stack. True: everything below has been pruned.
        waiting = [(directory, name, False) for name in names]
        while waiting:
            parent, name, done = waiting.pop()
            inode = parent.children[name]
            below = inode if isinstance(inode, DirectoryInode) and inode.children else None
            if below is not None and not done:
                waiting.append((parent, name, True))
                waiting.extend((below, child, False) for child in below.children)
            elif self._is_own(parent, name):
                continue
            elif below is not None:
                below.reset()
                self._declare(parent, name)
                self.touched[below] = None
            else:
                self._remove(parent, name)

    def _link(self, parent: DirectoryInode, name: bytes, member: Member) -> None:
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
        inode.describe(member, self._kept.attributes(member))
        self._kept.name(member.path)
        self.made.append(inode)
        return inode

    def _is_own(self, parent: DirectoryInode, name: bytes) -> bool:
        """Returns True if what stands at a name is of the present layer."""
        return parent.layer == self.layer or name in self._own.get(parent, ())

    def _declare(self, parent: DirectoryInode, name: bytes) -> None:
        """Notes that the present layer has something at a name, and what lower layers have there."""
        if parent.layer == self.layer:
            return
        own = self._own.setdefault(parent, set())
        if name not in own:
            own.add(name)
            if name in parent.children:
                self._below[parent, name] = parent.children[name]

    @staticmethod
    def _child(directory: Inode, name: bytes) -> Inode | None:
        return directory.children.get(name)

    def _lower_child(self, directory: Inode, name: bytes) -> Inode | None:
        """Returns what lower layers have at a name."""
        if not isinstance(directory, DirectoryInode):
            return None
        if self._is_own(directory, name) or name not in directory.children:
            return self._below.get((directory, name))
        return directory.children[name]

    def _look_up(self, path: bytes, child: Callable[[Inode, bytes], Inode | None], follow: bool) -> Inode | None:
        """Returns the inode at a path, None if there is none; a symlink at its end is followed only with `follow`."""
        at: Inode = self.root
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

    def _directory(self, path: bytes, of: bytes) -> DirectoryInode:
        """Returns the directory at `path`, and makes it if it is missing; `of` is the member that needs it."""
        found = self._parents.get(path)
        if found is None:
            found = self._resolve(path, of)
            if len(self._parents) >= _PARENTS:
                self._parents.clear()
            self._parents[path] = found
        return found

    def _resolve(self, path: bytes, of: bytes) -> DirectoryInode:
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
            if not isinstance(below, DirectoryInode):
                raise ImageError(f"{show(of)}: {show(part)} on its path is a {below.kind.value}, not a directory")
            at = below
        return at


def _in_order(directory: DirectoryInode) -> list[bytes]:
    """Returns the names in a directory in the order that the paths below them have, as bytes."""
    children = directory.children
    above = {name for name, child in children.items() if isinstance(child, DirectoryInode)}
    return sorted(children, key=lambda name: name + b"/" if name in above else name) if above else sorted(children)
