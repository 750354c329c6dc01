"""The simplest model of layers on layers: a dictionary of paths, and the set of those that the present layer added."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256

from blockmap.errors import ImageError
from blockmap.filesystem.member import Member, MemberKind, Members

Layer = list[tuple[Member, bytes]]
"""Members with their contents."""


def file(path: bytes, data: bytes = b"", mode: int = 0o644, **fields: object) -> tuple[Member, bytes]:
    return replace(Member(path, MemberKind.FILE, mode, size=len(data)), **fields), data  # type: ignore[arg-type]


def entry(path: bytes, kind: MemberKind = MemberKind.DIR, mode: int = 0o755, **fields: object) -> tuple[Member, bytes]:
    return replace(Member(path, kind, mode), **fields), b""  # type: ignore[arg-type]


def symlink(path: bytes, target: bytes) -> tuple[Member, bytes]:
    return Member(path, MemberKind.SYMLINK, 0o777, target=target), b""


def hardlink(path: bytes, target: bytes) -> tuple[Member, bytes]:
    return Member(path, MemberKind.HARDLINK, 0, target=target), b""


def members(layer: Iterable[tuple[Member, bytes]], piece: int = 1 << 20) -> Members:
    """Yields a layer as the writer takes it, with contents in pieces of `piece` bytes."""
    for member, data in layer:
        yield member, (data[at : at + piece] for at in range(0, len(data), piece))


@dataclass(eq=False)
class Thing:
    """A file, directory or other object; hard links share one."""

    member: Member
    content: bytes
    """SHA-256 of the contents of a regular file."""


class Model:
    """The files by path; every step scans all paths."""

    def __init__(self) -> None:
        self.paths: dict[bytes, Thing] = {b"": self._directory(b"")}
        self.begin()

    def begin(self) -> None:
        """Begins a layer."""
        self.own: set[bytes] = set()
        self.below = dict(self.paths)
        self.pseudo: dict[bytes, Thing] = {}

    def layer(self, members: Members) -> None:
        self.begin()
        for member, contents in members:
            state = sha256()
            for piece in contents:
                state.update(piece)
            self.add(member, state.digest())

    def add(self, member: Member, content: bytes = b"") -> None:
        if not member.path:
            if member.kind is not MemberKind.DIR:
                raise ImageError("root")
            self.paths[b""] = Thing(member, b"")
            return
        above, _, name = member.path.rpartition(b"/")
        parts = member.path.split(b"/")
        if any(part.startswith(b".wh..wh.") for part in parts) and name != b".wh..wh..opq":
            self.pseudo[member.path] = Thing(member, content)
            return
        if name.startswith(b".wh."):
            hidden = name[4:]
            if hidden in (b"", b".", b".."):
                raise ImageError("whiteout")
            where = self._find(above + b"/x", lower=True)  # whether x exists does not matter
            if where is not None:
                parent = where[:-1].removesuffix(b"/")
                if name == b".wh..wh..opq":
                    self._hide(parent, below_only=True)
                else:
                    self._hide(parent + b"/" + hidden if parent else hidden)
            return
        if any(part.startswith(b".wh.") for part in parts):
            raise ImageError("below a whiteout")
        parent = self._follow(above)
        path = parent + b"/" + name if parent else name
        if member.kind is MemberKind.HARDLINK:
            target = self.pseudo.get(member.target)
            for lower, paths in ((False, self.paths), (True, self.below)):
                at = self._find(member.target, lower)
                target = target or (None if at is None else paths.get(at))
            if target is None or target.member.kind is MemberKind.DIR:
                raise ImageError("hard link")
            self._put(path, target)
        else:
            old = self.paths.get(path)
            if old is None or old.member.kind is not MemberKind.DIR or member.kind is not MemberKind.DIR:
                self._put(path, Thing(member, content))
            else:
                self.paths[path] = Thing(member, b"")
                self.own.add(path)

    def groups(self) -> set[frozenset[bytes]]:
        """Returns the sets of paths that are hard links to one file."""
        of: dict[int, set[bytes]] = {}
        for path, thing in self.paths.items():
            of.setdefault(id(thing), set()).add(path)
        return {frozenset(paths) for paths in of.values()}

    def _put(self, path: bytes, thing: Thing) -> None:
        for below in self._below(path):
            del self.paths[below]
            self.own.discard(below)
        self.paths[path] = thing
        self.own.add(path)

    def _hide(self, path: bytes, below_only: bool = False) -> None:
        if path in self.paths and not below_only:
            self._hide_one(path)
        for below in sorted(self._below(path), key=len, reverse=True):
            self._hide_one(below)
        if path in self.paths and not below_only:
            self._hide_one(path)

    def _hide_one(self, path: bytes) -> None:
        if path in self.own:
            return
        if not any(below in self.own for below in self._below(path)):
            for below in [path, *self._below(path)]:
                del self.paths[below]
        elif path in self.paths:
            self.paths[path] = self._directory(path)
            self.own.add(path)

    def _find(self, path: bytes, lower: bool) -> bytes | None:
        """Returns the path with the symlinks of its directories followed, in the present tree or in that of the lower layers."""
        paths = self.below if lower else self.paths
        *todo, name = [part for part in path.split(b"/") if part]
        at: list[bytes] = []
        links = 0
        while todo:
            part = todo.pop(0)
            if part in (b"", b"."):
                continue
            if part == b"..":
                at = at[:-1]
                continue
            here = b"/".join([*at, part])
            thing = paths.get(here)
            if thing is not None and thing.member.kind is MemberKind.SYMLINK:
                links += 1
                if links > 40 or self.paths.get(here) is not thing:
                    return None
                target = thing.member.target
                at, todo = [] if target.startswith(b"/") else at, target.split(b"/") + todo
            elif thing is None or thing.member.kind is not MemberKind.DIR:
                return None
            else:
                at.append(part)
        return b"/".join([*at, name])

    def _below(self, path: bytes) -> list[bytes]:
        prefix = path + b"/" if path else b""
        return [each for each in self.paths if each.startswith(prefix) and each != path]

    def _follow(self, path: bytes) -> bytes:
        at: list[bytes] = []
        todo = path.split(b"/")
        links = 0
        while todo:
            part = todo.pop(0)
            if part in (b"", b"."):
                continue
            if part == b"..":
                at = at[:-1]
                continue
            here = b"/".join([*at, part])
            thing = self.paths.get(here)
            if thing is None:
                thing = self.paths[here] = self._directory(here)
                self.own.add(here)
            if thing.member.kind is MemberKind.SYMLINK:
                links += 1
                if links > 40:
                    raise ImageError("symlinks")
                target = thing.member.target
                at, todo = [] if target.startswith(b"/") else at, target.split(b"/") + todo
            elif thing.member.kind is not MemberKind.DIR:
                raise ImageError("not a directory")
            else:
                at.append(part)
        return b"/".join(at)

    @staticmethod
    def _directory(path: bytes) -> Thing:
        return Thing(Member(path, MemberKind.DIR, 0o755), b"")


def unpacked(layers: Iterable[Layer]) -> Model:
    model = Model()
    for layer in layers:
        model.layer(members(layer))
    return model
