"""Compares a volume with the image that it was made from, file by file.

The expected files are worked out by another reader of archives and another merge, of paths in a dict, which shares only the
rules with the importer's (filesystem/merge.py states them).
"""

from dataclasses import dataclass, field
from hashlib import sha256

from blockmap.errors import ImageError
from blockmap.filesystem.ext4.reader import DirectoryEntry, Ext4Reader
from blockmap.filesystem.member import ImageSource, Layer, Member, MemberKind

_WHITEOUT, _OPAQUE, _AUFS = b".wh.", b".wh..wh..opq", b".wh..wh."
_MAX_SYMLINKS = 40
_MADE_BY_EXT4 = b"lost+found"


@dataclass(frozen=True, slots=True)
class Difference:
    path: bytes
    what: str
    expected: object
    found: object

    def __str__(self) -> str:
        path = "/" + self.path.decode("utf-8", "backslashreplace")
        return f"{path}: {self.what} is {self.found!r}, {self.expected!r} is expected"


@dataclass(slots=True, eq=False)
class _Object:
    """A file as the image describes it; hard links share one."""

    member: Member
    content: bytes = b""
    """SHA-256 of the contents of a regular file."""
    paths: list[bytes] = field(default_factory=list)


_Unpacked = dict[bytes, _Object]


def compare(volume: Ext4Reader, source: ImageSource) -> list[Difference]:
    """Returns every difference in kind, mode, owner, times, attributes, links, targets, devices, sizes and contents."""
    expected = unpacked(source)
    groups: dict[int, bytes] = {}
    differences: list[Difference] = []
    for path, thing in expected.items():
        thing.paths.append(path)
    numbers: dict[int, int] = {}
    found_paths = set()
    for entry in volume.walk():
        found_paths.add(entry.path)
        wanted = expected.get(entry.path)
        if wanted is None:
            if entry.path != _MADE_BY_EXT4:
                differences.append(Difference(entry.path, "the path", "absent", entry.kind.value))
            continue
        differences += _compare_one(volume, entry, wanted, groups)
        if entry.kind is not MemberKind.DIR:
            if numbers.setdefault(entry.number, id(wanted)) != id(wanted):
                differences.append(Difference(entry.path, "the inode", "its own", "another file's"))
            if entry.links != len(wanted.paths):
                differences.append(Difference(entry.path, "the number of names", len(wanted.paths), entry.links))
    differences += [Difference(path, "the path", "there", "absent") for path in expected if path not in found_paths]
    return differences


def unpacked(source: ImageSource) -> _Unpacked:
    """Returns the files that the layers of an image unpack to, by path."""
    merged = _Merged()
    for layer in source.layers:
        merged.apply(layer)
    return merged.tree


class _Merged:
    """The merged layers."""

    def __init__(self) -> None:
        self.tree: _Unpacked = {b"": _directory(b"")}
        self._below: _Unpacked = {}  # the tree that the lower layers left
        self._own: set[bytes] = set()  # paths that the present layer has

    def apply(self, layer: Layer) -> None:
        self._below, self._own = dict(self.tree), set()
        aufs: _Unpacked = {}
        for member, contents in layer.second_reading():
            state = sha256()
            for piece in contents:
                state.update(piece)
            thing = _Object(member, state.digest() if member.kind is MemberKind.FILE else b"")
            above, _, name = member.path.rpartition(b"/")
            if name != _OPAQUE and any(part.startswith(_AUFS) for part in member.path.split(b"/")):
                aufs[member.path] = thing
            elif name.startswith(_WHITEOUT):
                self._hide(above, name)
            elif not member.path:
                self.tree[b""] = thing
            else:
                parent = self._follow(self.tree, above, make=True)
                if parent is None:
                    raise ImageError(f"{member.path!r} is below something that is no directory")
                self._add(parent, name, thing, aufs)

    def _add(self, parent: bytes, name: bytes, thing: _Object, aufs: _Unpacked) -> None:
        path, member = _join(parent, name), thing.member
        if member.kind is MemberKind.HARDLINK:
            above, _, last = member.target.rpartition(b"/")
            found = aufs.get(member.target)
            for tree in (self.tree, self._below):
                where = self._follow(tree, above)
                found = found or (None if where is None else tree.get(_join(where, last)))
            if found is None or found.member.kind is MemberKind.DIR:
                raise ImageError(
                    f"{path!r} is a hard link to {member.target!r}, which does not exist or is a directory"
                )
            thing = found
        old = self.tree.get(path)
        if old is not None and not (old.member.kind is MemberKind.DIR and thing.member.kind is MemberKind.DIR):
            for gone in [path, *_inside(self.tree, path)]:
                del self.tree[gone]
                self._own.discard(gone)
        self.tree[path] = thing
        self._own.add(path)

    def _hide(self, above: bytes, name: bytes) -> None:
        """Removes what lower layers have at a whiteout; directories that hold something of this layer lose their attributes."""
        parent = self._follow(self._below, above)
        if parent is None:
            return
        paths = _inside(self.tree, parent)
        if name != _OPAQUE:
            hidden = _join(parent, name[len(_WHITEOUT) :])
            paths = [hidden, *_inside(self.tree, hidden)] if hidden in self.tree else []
        kept: set[bytes] = set()
        for path in sorted(paths, reverse=True):  # what is below a directory comes before it
            if path not in self._own:
                if path not in kept:
                    del self.tree[path]
                    continue
                self.tree[path] = _directory(path)
                self._own.add(path)
            kept.add(path.rpartition(b"/")[0])

    def _follow(self, tree: _Unpacked, path: bytes, make: bool = False) -> bytes | None:
        """Returns the path of a directory in a tree, with symlinks followed inside the root; None if it cannot be there.

        Symlinks of lower layers are followed only where they still are.
        """
        at: list[bytes] = []
        todo = path.split(b"/")[::-1]
        followed = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                at = at[:-1]
                continue
            here = b"/".join([*at, part])
            there = tree.get(here)
            if there is None and make:
                there = tree[here] = _directory(here)
                self._own.add(here)
            if there is None:
                return None
            if there.member.kind is MemberKind.SYMLINK:
                followed += 1
                if followed > _MAX_SYMLINKS or self.tree.get(here) is not there:
                    return None
                target = there.member.target
                at = [] if target.startswith(b"/") else at
                todo.extend(target.split(b"/")[::-1])
            elif there.member.kind is MemberKind.DIR:
                at.append(part)
            else:
                return None
        return b"/".join(at)


def _directory(path: bytes) -> _Object:
    return _Object(Member(path, MemberKind.DIR, 0o755))


def _inside(tree: _Unpacked, path: bytes) -> list[bytes]:
    """Returns all paths below a directory."""
    if path in tree and tree[path].member.kind is not MemberKind.DIR:
        return []
    prefix = path + b"/" if path else b""
    return [each for each in tree if each.startswith(prefix) and each != path]


def _join(above: bytes, name: bytes) -> bytes:
    return above + b"/" + name if above else name


def _compare_one(
    volume: Ext4Reader, entry: DirectoryEntry, wanted: _Object, contents: dict[int, bytes]
) -> list[Difference]:
    member = wanted.member
    differences = []

    def check(what: str, expected: object, found: object) -> None:
        if expected != found:
            differences.append(Difference(entry.path, what, expected, found))

    check("the kind", member.kind.value, entry.kind.value)
    if member.kind is not entry.kind:
        return differences
    check("the mode", oct(0o777 if member.kind is MemberKind.SYMLINK else member.mode), oct(entry.mode))
    check("the owner", (member.uid, member.gid), (entry.uid, entry.gid))
    check("the time", (member.mtime_s, member.mtime_ns), (entry.mtime_s, entry.mtime_ns))
    check("the set of extended attributes", dict(member.xattrs), entry.xattrs)
    if member.kind is MemberKind.SYMLINK:
        check("the target", member.target, entry.target)
    elif member.kind in (MemberKind.CHAR, MemberKind.BLOCK):
        check("the device", (member.major, member.minor), (entry.major, entry.minor))
    elif member.kind is MemberKind.FILE:
        check("the size", member.size, entry.size)
        if entry.number not in contents:
            state = sha256()
            for piece in volume.contents(entry):
                state.update(piece)
            contents[entry.number] = state.digest()
        check("the SHA-256 of the content", wanted.content.hex(), contents[entry.number].hex())
    return differences
