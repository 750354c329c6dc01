"""Volumes written to sparse files, and the checks of every one of them."""

import os
import stat
import struct
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from blockmap.filesystem.ext4.reader import Ext4Reader
from blockmap.filesystem.ext4.writer import Ext4Volume, Ext4Writer
from blockmap.filesystem.member import Member, MemberKind, Members
from tests.image.model import Layer, Model, members

BLOCK = 4096
UUID = bytes.fromhex("11111111222233334444555566667777")
THRESHOLD = 8
ZEROS = bytes(1 << 26)
"""Zeros that the sink recognises by identity, so that files of many GiB cost nothing."""


class FileSink:
    """A sink that writes a sparse file, and accepts each block once."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self.runs: list[tuple[int, int, str]] = []
        """Start, end and SHA-256 of the bytes between two cuts, without ZEROS, in the order of writing."""
        self._state = sha256()
        self._begin = self._end = 0

    def write(self, block: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        assert len(view)
        assert len(view) % BLOCK == 0
        if block != self._end:
            self.cut()
            self._begin = self._end = block
        self._end += len(view) // BLOCK
        if view.obj is not ZEROS:
            self._state.update(view)
            done = 0
            while done < len(view):
                done += os.pwrite(self._file, view[done:], block * BLOCK + done)

    def cut(self) -> None:
        if self._end > self._begin:
            self.runs.append((self._begin, self._end, self._state.hexdigest()))
        self._begin, self._state = self._end, sha256()

    def finish(self, size_blocks: int) -> None:
        self.cut()
        os.ftruncate(self._file, size_blocks * BLOCK)
        os.close(self._file)
        at = 0
        for start, end, _ in sorted(self.runs):
            assert at <= start, f"block {start} was written twice"
            at = end
        assert at <= size_blocks


def write(path: Path, layers: Iterable[Members], threshold: int = THRESHOLD) -> tuple[Ext4Volume, FileSink]:
    sink = FileSink(path)
    writer = Ext4Writer(sink, threshold)
    for layer in layers:
        writer.layer(layer)
    volume = writer.finish(UUID)
    sink.finish(volume.size_blocks)
    return replace(volume, files=list(volume.files)), sink


def make(path: Path, layers: Iterable[Layer], piece: int = 1 << 20) -> tuple[Ext4Volume, FileSink]:
    return write(path, [members(layer, piece) for layer in layers])


def huge(path: bytes, size: int, head: bytes) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """Yields a file of zeros except for its beginning and its last byte."""

    def contents() -> Iterator[bytes]:
        yield head
        left = size - len(head) - 1
        while left >= len(ZEROS):
            yield ZEROS
            left -= len(ZEROS)
        yield bytes(left)
        yield b"!"

    yield Member(path, MemberKind.FILE, 0o644, size=size), contents()


def fsck(path: Path, *options: str) -> None:
    """Asserts that e2fsck prints no error, which its exit status does not tell."""
    done = subprocess.run(["e2fsck", "-fn", *options, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "Fix?" not in done.stdout, done.stdout
    assert "wrong" not in done.stdout, done.stdout


def reader(path: Path) -> Ext4Reader:
    def read(offset: int, length: int) -> bytes:
        with open(path, "rb") as file:
            return os.pread(file.fileno(), length, offset)

    return Ext4Reader(read)


def compare(path: Path, model: Model) -> None:
    """Asserts that the independent reader finds the files of the model."""
    volume = reader(path)
    links = Counter(id(thing) for thing in model.paths.values())
    contents: dict[int, bytes] = {}
    numbers: dict[int, int] = {}
    found = set()
    for entry in volume.walk():
        if entry.path == b"lost+found" and entry.path not in model.paths:
            continue
        found.add(entry.path)
        thing = model.paths[entry.path]
        member = thing.member
        mode = 0o777 if member.kind is MemberKind.SYMLINK else member.mode
        assert (entry.kind, entry.mode, entry.uid, entry.gid) == (member.kind, mode, member.uid, member.gid), entry.path
        assert (entry.mtime_s, entry.mtime_ns) == (member.mtime_s, member.mtime_ns), entry.path
        assert (entry.major, entry.minor) == (member.major, member.minor), entry.path
        assert entry.xattrs == dict(member.xattrs), entry.path
        if member.kind is MemberKind.SYMLINK:
            assert entry.target == member.target, entry.path
        if member.kind is not MemberKind.DIR:
            assert numbers.setdefault(entry.number, id(thing)) == id(thing), entry.path
            assert entry.links == links[id(thing)], entry.path
        if member.kind is MemberKind.FILE and entry.number not in contents:
            state = sha256()
            for piece in volume.contents(entry):
                state.update(piece)
            contents[entry.number] = state.digest()
        if member.kind is MemberKind.FILE:
            assert entry.size == member.size, entry.path
            assert contents[entry.number] == thing.content, entry.path
    assert found == set(model.paths)


def compare_mounted(top: Path, model: Model) -> None:
    """Asserts that the kernel shows the files of the model."""
    root = os.fsencode(top)
    found = {b""}
    for above, folders, names in os.walk(root):
        found |= {os.path.relpath(os.path.join(above, name), root) for name in (*folders, *names)}
    assert found - {b"lost+found"} == set(model.paths) - {b"lost+found"}
    links = Counter(id(thing) for thing in model.paths.values())
    directories = [path for path, thing in model.paths.items() if path and thing.member.kind is MemberKind.DIR]
    below = Counter(path.rpartition(b"/")[0] for path in directories)
    numbers: dict[int, int] = {}
    for path, thing in model.paths.items():
        full = os.path.join(root, path)
        seen, member = os.lstat(full), thing.member
        kinds = {
            MemberKind.FILE: stat.S_ISREG, MemberKind.DIR: stat.S_ISDIR, MemberKind.SYMLINK: stat.S_ISLNK,
            MemberKind.CHAR: stat.S_ISCHR, MemberKind.BLOCK: stat.S_ISBLK, MemberKind.FIFO: stat.S_ISFIFO,
        }  # fmt: skip
        assert kinds[member.kind](seen.st_mode), path
        mode = 0o777 if member.kind is MemberKind.SYMLINK else member.mode
        assert (stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid) == (mode, member.uid, member.gid), path
        times = (seen.st_mtime_ns, seen.st_atime_ns, seen.st_ctime_ns)
        assert set(times) == {member.mtime_s * 10**9 + member.mtime_ns}, path
        if member.kind is MemberKind.DIR:
            lost = path == b"" and b"lost+found" not in model.paths
            assert seen.st_nlink == 2 + below[path] + lost, path
        else:
            assert seen.st_nlink == links[id(thing)], path
            assert numbers.setdefault(seen.st_ino, id(thing)) == id(thing), path
        if member.kind in (MemberKind.CHAR, MemberKind.BLOCK):
            assert (os.major(seen.st_rdev), os.minor(seen.st_rdev)) == (member.major, member.minor), path
        if member.kind is MemberKind.SYMLINK:
            assert os.readlink(full) == member.target, path
        if member.kind is MemberKind.FILE:
            assert seen.st_size == member.size, path
            with open(full, "rb") as file:
                state = sha256()
                while piece := file.read(1 << 20):
                    state.update(piece)
                assert state.digest() == thing.content, path
        listed = os.listxattr(full, follow_symlinks=False)
        xattrs = {os.fsencode(name): os.getxattr(full, name, follow_symlinks=False) for name in listed}
        assert xattrs == dict(member.xattrs), path


class Raw:
    """The structures of a volume, parsed from the bytes by hand."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        self.super = self.read(1024, 1024)
        self.inodes, self.blocks = struct.unpack_from("<II", self.super)
        self.groups = self.blocks // 32768
        self.descriptors = [
            struct.unpack("<IIIHHHHIHHHH", self.read(BLOCK + group * 32, 32)) for group in range(self.groups)
        ]

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file, length, offset)

    def block(self, number: int) -> bytes:
        return self.read(number * BLOCK, BLOCK)

    def inode(self, number: int) -> bytes:
        group, slot = divmod(number - 1, 8192)
        return self.read(self.descriptors[group][2] * BLOCK + slot * 256, 256)

    def used(self, block: int) -> bool:
        """Returns True if the bitmap has the block; a group without a bitmap has copies at most."""
        group, at = divmod(block, 32768)
        if self.descriptors[group][6] & 2:
            return has_copy(group) and at < 65
        return bool(self.read(self.descriptors[group][0] * BLOCK + at // 8, 1)[0] >> at % 8 & 1)

    def inode_used(self, number: int) -> bool:
        group, at = divmod(number - 1, 8192)
        if self.descriptors[group][6] & 1:
            return False
        return bool(self.read(self.descriptors[group][1] * BLOCK + at // 8, 1)[0] >> at % 8 & 1)

    def close(self) -> None:
        os.close(self._file)


def has_copy(group: int) -> bool:
    return group in (0, 1) or any(base**power == group for base in (3, 5, 7) for power in range(1, 14))
