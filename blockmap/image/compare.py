"""Compares a volume with the image that it was made from, file by file.

The expected files are worked out by a merge of its own: paths in a dict, whiteouts of a layer first. It
shares only the rules with the importer's merge (OCI image-spec, layer.md).
"""

from dataclasses import dataclass, field
from hashlib import sha256

from blockmap.errors import ImageError
from blockmap.filesystem.ext4.reader import DirectoryEntry, Ext4Reader
from blockmap.filesystem.member import ImageSource, Layer, Member, MemberKind

_WHITEOUT, _OPAQUE = b".wh.", b".wh..wh..opq"
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
    tree: dict[bytes, _Object] = {b"": _Object(Member(b"", MemberKind.DIR, 0o755))}
    for layer in source.layers:
        tree = _apply(tree, layer)
    return tree


def _apply(below: _Unpacked, layer: Layer) -> _Unpacked:
    members: list[_Object] = []
    for member, contents in layer.members(lambda data: None):
        state = sha256()
        for piece in contents:
            state.update(piece)
        members.append(_Object(member, state.digest() if member.kind is MemberKind.FILE else b""))
    tree = dict(below)
    for thing in members:
        above, _, name = thing.member.path.rpartition(b"/")
        if name == _OPAQUE:
            where = _follow(tree, above)
            _remove(tree, where, keep=True)
        elif name.startswith(_WHITEOUT):
            where = _follow(tree, above)
            _remove(tree, _join(where, name[len(_WHITEOUT) :]), keep=False)
    for thing in members:
        above, _, name = thing.member.path.rpartition(b"/")
        if name.startswith(_WHITEOUT):
            continue
        if not thing.member.path:
            tree[b""] = thing
            continue
        parent = _follow(tree, above)
        _make_parents(tree, parent)
        path = _join(parent, name)
        member = thing.member
        if member.kind is MemberKind.HARDLINK:
            target_above, _, target_name = member.target.rpartition(b"/")
            target = tree.get(_join(_follow(tree, target_above), target_name))
            if target is None:
                raise ImageError(f"{path!r} is a hard link to {member.target!r}, which does not exist")
            _remove(tree, path, keep=False)
            tree[path] = target
            continue
        old = tree.get(path)
        if not (old is not None and old.member.kind is MemberKind.DIR and member.kind is MemberKind.DIR):
            _remove(tree, path, keep=False)
        tree[path] = thing
    return tree


def _remove(tree: _Unpacked, path: bytes, keep: bool) -> None:
    """Removes everything below a path, and the path itself unless `keep`."""
    old = tree.get(path)
    if old is None:
        return
    if old.member.kind is MemberKind.DIR:
        prefix = path + b"/" if path else b""
        for below in [each for each in tree if each.startswith(prefix) and each != path]:
            del tree[below]
    if not keep:
        del tree[path]


def _follow(tree: _Unpacked, path: bytes) -> bytes:
    """Returns a directory's path with symlinks followed inside the root."""
    at: list[bytes] = []
    todo = [part for part in path.split(b"/") if part][::-1]
    followed = 0
    while todo:
        part = todo.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            at = at[:-1]
            continue
        there = tree.get(b"/".join([*at, part]))
        if there is not None and there.member.kind is MemberKind.SYMLINK:
            followed += 1
            if followed > 40:
                raise ImageError(f"{path!r} leads through too many symlinks")
            target = there.member.target
            at = [] if target.startswith(b"/") else at
            todo.extend(target.split(b"/")[::-1])
            continue
        at = [*at, part]
    return b"/".join(at)


def _make_parents(tree: _Unpacked, path: bytes) -> None:
    parts = path.split(b"/") if path else []
    for count in range(1, len(parts) + 1):
        above = b"/".join(parts[:count])
        if above not in tree:
            tree[above] = _Object(Member(above, MemberKind.DIR, 0o755))


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
