"""Layers merged into one tree of inodes, as a container engine would unpack them, without unpacking anything.

Members are taken in the order of the archive. A whiteout acts on what lower layers brought, wherever in its layer it
stands. Parents may lead through symlinks, which are followed inside the root; those that are missing are made.
"""

from collections.abc import Iterator

from blockmap.errors import ImageError
from blockmap.image.member import Kind, Member

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
MAX_NAME = 255
MAX_TARGET = 4095
_MAX_SYMLINKS = 40


class Inode:
    """One file, directory or other object, whatever names it has."""

    __slots__ = (
        "children", "gid", "kind", "layers", "links", "major", "minor", "mode", "mtime_ns", "mtime_s", "parent", "place",
        "size", "target", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.mode = 0o755
        self.uid = self.gid = 0
        self.mtime_s = self.mtime_ns = 0
        self.size = 0
        self.target = b""
        self.major = self.minor = 0
        self.xattrs: dict[bytes, bytes] = {}
        self.links = 0
        """Names that it has; 0: it is gone."""
        self.children: dict[bytes, Inode] = {}
        """Of a directory, in order of insertion."""
        self.layers: dict[bytes, int] = {}
        """Of a directory: the layer that brought each child, or last declared it."""
        self.parent: Inode = self
        """Of a directory."""
        self.place: object = None
        """Whatever the file system's writer keeps about it."""

    def describe(self, member: Member) -> None:
        """Takes over a member's attributes."""
        self.mode, self.uid, self.gid = member.mode, member.uid, member.gid
        self.mtime_s, self.mtime_ns = member.mtime_s, member.mtime_ns
        self.size, self.target = member.size, member.target
        self.major, self.minor = member.major, member.minor
        self.xattrs = dict(member.xattrs)

    def reset(self) -> None:
        """The attributes of a directory that no member describes."""
        self.mode, self.uid, self.gid, self.mtime_s, self.mtime_ns, self.xattrs = 0o755, 0, 0, 0, 0, {}


class Tree:
    """The merged tree; `add` members layer by layer."""

    def __init__(self) -> None:
        self.root = Inode(Kind.DIR)
        self.root.links = 1
        self.layer = -1
        self.made: list[Inode] = []
        """Inodes that the present layer brought, in order; some may be gone again."""
        self.touched: dict[Inode, None] = {}
        """Directories whose children or attributes the present layer changed."""
        self._parents: dict[bytes, Inode] = {}  # directories by path as written; emptied when a path may lead elsewhere

    def begin_layer(self) -> None:
        self.layer += 1
        self.made = []
        self.touched = {}

    def add(self, member: Member) -> Inode | None:
        """Takes one member; returns the inode that is to get its contents. ImageError names what cannot be."""
        if not member.path:
            if member.kind is not Kind.DIR:
                raise ImageError(f"the root of a layer is a {member.kind.value}: a directory is expected")
            self.root.describe(member)
            self.touched[self.root] = None
            return None
        above, _, name = member.path.rpartition(b"/")
        if len(name) > MAX_NAME:
            raise ImageError(f"{_text(member.path)}: its name has {len(name)} bytes, ext4 allows {MAX_NAME}")
        if name in (b"..", b"."):
            raise ImageError(f"{_text(member.path)}: a path must not climb out of the root")
        parent = self._directory(above, member.path)
        if name.startswith(WHITEOUT):
            self._whiteout(parent, name)
            return None
        if member.kind is Kind.HARDLINK:
            self._link(parent, name, member)
            return None
        old = parent.children.get(name)
        self.touched[parent] = None
        if old is not None and old.kind is Kind.DIR and member.kind is Kind.DIR:
            old.describe(member)
            parent.layers[name] = self.layer
            self.touched[old] = None
            return None
        if member.kind is Kind.SYMLINK and not 0 < len(member.target) <= MAX_TARGET:
            raise ImageError(
                f"{_text(member.path)}: a symlink's target has 1 to {MAX_TARGET} bytes, this {len(member.target)}"
            )
        inode = self.make(parent, name, member.kind)
        inode.describe(member)
        return inode if member.kind is Kind.FILE else None

    def find(self, path: bytes) -> Inode | None:
        """What is at a path, a symlink at its end not followed."""
        above, _, name = path.rpartition(b"/")
        if not path:
            return self.root
        parent = self._directory(above, path)
        return parent.children.get(name)

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every path with its inode, parents first, sorted by name within a directory."""
        waiting: list[tuple[bytes, Inode]] = [(b"", self.root)]
        while waiting:
            path, inode = waiting.pop()
            yield path, inode
            if inode.children:
                prefix = path + b"/" if path else b""
                waiting.extend((prefix + name, inode.children[name]) for name in sorted(inode.children, reverse=True))

    def make(self, parent: Inode, name: bytes, kind: Kind) -> Inode:
        """A new inode with a name, in place of whatever had it."""
        inode = Inode(kind)
        if kind is Kind.DIR:
            inode.parent = parent
        self._put(parent, name, inode)
        self.made.append(inode)
        return inode

    def _put(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Gives an inode a name, in place of whatever had it."""
        old = parent.children.get(name)
        inode.links += 1
        if old is not None:
            self._release(old)
        if old is not None or inode.kind is Kind.SYMLINK:
            self._parents.clear()
        parent.children[name] = inode
        parent.layers[name] = self.layer
        self.touched[parent] = None

    def _remove(self, parent: Inode, name: bytes) -> None:
        inode = parent.children.pop(name)
        del parent.layers[name]
        self.touched[parent] = None
        self._parents.clear()
        self._release(inode)

    def _release(self, inode: Inode) -> None:
        """Takes a name away from an inode, and with the last one all that is below it."""
        waiting = [inode]
        while waiting:
            gone = waiting.pop()
            gone.links -= 1
            if gone.kind is Kind.DIR:
                waiting.extend(gone.children.values())
                gone.children, gone.layers = {}, {}

    def _whiteout(self, parent: Inode, name: bytes) -> None:
        if name == OPAQUE:
            for child in list(parent.children):
                self._prune(parent, child)
            return
        hidden = name[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise ImageError(f"{_text(name)}: a whiteout must name what it removes")
        if hidden in parent.children:
            self._prune(parent, hidden)

    def _prune(self, parent: Inode, name: bytes) -> None:
        """Removes what lower layers brought at a name and below it; what this layer brought stays."""
        inode, own = parent.children[name], parent.layers[name] == self.layer
        if inode.kind is Kind.DIR:
            for child in list(inode.children):
                self._prune(inode, child)
            if not own and inode.children:
                inode.reset()
                parent.layers[name] = self.layer
                self.touched[inode] = None
                return
        if not own:
            self._remove(parent, name)

    def _link(self, parent: Inode, name: bytes, member: Member) -> None:
        target = self.find(member.target)
        if target is None:
            raise ImageError(f"{_text(member.path)}: is a hard link to {_text(member.target)}, which does not exist")
        if target.kind is Kind.DIR:
            raise ImageError(f"{_text(member.path)}: is a hard link to the directory {_text(member.target)}")
        if parent.children.get(name) is target:
            parent.layers[name] = self.layer
            return
        self._put(parent, name, target)

    def _directory(self, path: bytes, of: bytes) -> Inode:
        """The directory at `path`, made where it is missing; `of` is the member that needs it."""
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
                below = self.make(at, part, Kind.DIR)
            if below.kind is Kind.SYMLINK:
                followed += 1
                if followed > _MAX_SYMLINKS:
                    raise ImageError(f"{_text(of)}: its path leads through more than {_MAX_SYMLINKS} symlinks")
                if below.target.startswith(b"/"):
                    at = self.root
                todo.extend(below.target.split(b"/")[::-1])
                continue
            if below.kind is not Kind.DIR:
                raise ImageError(f"{_text(of)}: {_text(part)} on its path is a {below.kind.value}, not a directory")
            at = below
        return at


def _text(path: bytes) -> str:
    return repr(path.decode("utf-8", "backslashreplace"))
