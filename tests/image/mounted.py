"""Volumes under the kernel: mounted, compared with the files of another program, written to and grown."""

import filecmp
import os
import shutil
import stat
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from hashlib import shake_128
from pathlib import Path

from tests.filesystem.ext4.volumes import fsck

GIB = 1 << 30


@contextmanager
def mounted(raw: Path, where: Path, options: str = "ro") -> Iterator[Path]:
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", f"loop,{options}", raw, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


def walk(top: Path) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yields every path below `top`, and b"" for `top` itself."""
    root = os.fsencode(top)
    yield b"", os.lstat(root)
    for above, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(above, name)
            yield os.path.relpath(path, root), os.lstat(path)


def attributes(path: bytes) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def link_groups(found: dict[bytes, os.stat_result]) -> set[frozenset[bytes]]:
    """Returns the sets of paths that share an inode."""
    groups = defaultdict(set)
    for path, seen in found.items():
        if seen.st_nlink > 1 and not stat.S_ISDIR(seen.st_mode):
            groups[seen.st_ino].add(path)
    return set(map(frozenset, groups.values()))


def compare_with_unpacked(
    volume: Path,
    unpacked: Path,
    undescribed: Collection[bytes] = (),
    odd_times: Collection[bytes] = (),
    odd_attributes: Collection[bytes] = (),
) -> int:
    """Asserts that a volume, when mounted, has the files of the folder `unpacked`; returns the number of paths.

    Mode, owner, time and attributes of `undescribed` paths are not compared, nor others that the program cannot restore.
    Times of directories are not compared either: a program that unpacks changes them.
    """
    ours, theirs = dict(walk(volume)), dict(walk(unpacked))
    if b"lost+found" not in theirs:
        del ours[b"lost+found"]
    assert sorted(ours) == sorted(theirs)
    assert link_groups(ours) == link_groups(theirs)
    for path, own in ours.items():
        other = theirs[path]
        assert stat.S_IFMT(own.st_mode) == stat.S_IFMT(other.st_mode), path
        if not stat.S_ISDIR(own.st_mode):
            assert (own.st_size, own.st_nlink, own.st_rdev) == (other.st_size, other.st_nlink, other.st_rdev), path
        if path not in undescribed:
            assert (own.st_mode, own.st_uid, own.st_gid) == (other.st_mode, other.st_uid, other.st_gid), path
            if path not in odd_times and not stat.S_ISDIR(own.st_mode):
                assert own.st_mtime_ns == other.st_mtime_ns, path
        left, right = os.path.join(os.fsencode(volume), path), os.path.join(os.fsencode(unpacked), path)
        if stat.S_ISREG(own.st_mode):
            assert filecmp.cmp(left, right, shallow=False), path
        if stat.S_ISLNK(own.st_mode):
            assert os.readlink(left) == os.readlink(right), path
        elif path not in undescribed and path not in odd_attributes:
            assert attributes(left) == attributes(right), path
    return len(ours)


def write_and_grow(volume: Path, copy: Path, where: Path) -> None:
    """Asserts that a copy of a volume of 16 GiB can be written, is clean, and grows to 24 GiB."""
    subprocess.run(["cp", "--sparse=always", volume, copy], check=True)
    assert copy.stat().st_size == 16 * GIB
    large = shake_128(b"large").digest(1 << 20) * 50
    with mounted(copy, where, "rw") as top:
        files = [path for path, seen in walk(top) if stat.S_ISREG(seen.st_mode)]
        full = [os.path.join(os.fsencode(top), path) for path in files]
        for path in full[::3]:
            os.unlink(path)
        for path in full[1::3]:
            with open(path, "ab") as file:
                file.write(b"more")
        os.makedirs(top / "written" / "below")
        for n in range(500):
            (top / "written" / f"file-{n}").write_bytes(shake_128(bytes([n % 256])).digest(3000))
        (top / "written" / "large").write_bytes(large)
        os.rename(full[1], top / "written" / "below" / "renamed")
        subprocess.run(["sync", "-f", top], check=True)
    fsck(copy)
    os.truncate(copy, 24 * GIB)
    subprocess.run(["e2fsck", "-fp", copy], check=True, capture_output=True)  # resize2fs asks for it after a mount
    subprocess.run(["resize2fs", copy], check=True, capture_output=True)
    fsck(copy)
    with mounted(copy, where) as top:
        assert (top / "written" / "large").read_bytes() == large
        assert (top / "written" / "file-499").read_bytes() == shake_128(bytes([499 % 256])).digest(3000)
        assert shutil.disk_usage(top).total > 23 * GIB
