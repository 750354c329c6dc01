"""Applies what an overlay mount's upper directory holds to a copy of what lay below it, in time that grows with what changed.

The forms are those of the kernel (Documentation/filesystems/overlayfs.rst): whiteouts as devices 0:0 and as empty files with an
attribute, opaque directories, directories and files that were renamed and left where they were below (redirect), files of which
only the metadata were copied up (metacopy).
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from blockmap.errors import HostError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_COPY_BYTES = 1 << 20
_MOST_LEVELS = 400
"""Directories within directories, two descriptors each; a process has 1,024 at least."""
_Lower = tuple[str, ...]
"""A path below the mount, from its root, by components."""


class _Marks(NamedTuple):
    """What overlay's own attributes say of an entry."""

    is_whiteout: bool
    is_opaque: bool
    redirect: str | None
    is_metacopy: bool


def apply_upper(upper: Path, target: Path, *, user_attributes: bool = False) -> int:
    """Makes `target`, a writable mount of what was below, what the overlay showed; returns how many entries it looked at.

    `user_attributes` says that the overlay was mounted with `userxattr`. Nobody writes to either meanwhile. Attributes that
    are overlay's own are not taken along. Raises HostError.
    """
    try:
        with _Applier(upper, target, "user.overlay." if user_attributes else "trusted.overlay.") as applier:
            return applier.apply()
    except OSError as error:
        raise HostError(f"cannot apply {upper} to {target}: {error}") from error


class _Applier:
    def __init__(self, upper: Path, target: Path, prefix: str) -> None:
        self._prefix = prefix
        self._upper, self._target = os.open(upper, _DIRECTORY), os.open(target, _DIRECTORY)
        self._aside_name = f".blockmap-{os.getpid()}"
        os.mkdir(self._aside_name, 0o700, dir_fd=self._target)
        self._aside = os.open(self._aside_name, _DIRECTORY, dir_fd=self._target)
        self._staged: dict[_Lower, str] = {}
        """Names, in the folder aside, of what the upper directory wants elsewhere."""
        self._shared: set[str] = set()
        """Names of what is staged and has other names below, so that it must not be changed itself."""
        self._links: dict[int, str] = {}
        """Names, in the folder aside, of files that the upper directory has under several, by inode there."""
        self._count = 0

    def __enter__(self) -> "_Applier":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._aside, self._upper, self._target):
            os.close(fd)

    def apply(self) -> int:
        # All that is wanted elsewhere goes aside before anything is removed; what lies deeper first, as each moves once.
        for path in sorted(set(self._wanted(self._upper, (), 0)), key=len, reverse=True):
            self._stage(path)
        self._merge(self._upper, self._target, ())
        shutil.rmtree(self._aside_name, dir_fd=self._target)
        self._set_metadata(self._upper, ".", self._target, ".")
        return self._count

    def _wanted(self, upper: int, lower: _Lower | None, level: int) -> Iterator[_Lower]:
        """Yields the paths below that entries of a directory were at, and that are called otherwise now."""
        if level > _MOST_LEVELS:
            raise HostError(f"the overlay's upper directory has more than {_MOST_LEVELS} directories within each other")
        for name in os.listdir(upper):
            about = os.stat(name, dir_fd=upper, follow_symlinks=False)
            if not (stat.S_ISDIR(about.st_mode) or stat.S_ISREG(about.st_mode)):
                continue
            marks = self._marks(upper, name, about)
            path = _path_below(lower, name, marks)
            if path is not None and marks.redirect is not None:
                yield path
            if stat.S_ISDIR(about.st_mode):
                with _opened(name, upper) as child:
                    yield from self._wanted(child, path, level + 1)

    def _stage(self, path: _Lower) -> None:
        with suppress(FileNotFoundError, NotADirectoryError), _parent(self._target, path) as parent:
            about = os.stat(path[-1], dir_fd=parent, follow_symlinks=False)
            aside = str(len(self._staged))
            if stat.S_ISREG(about.st_mode) and about.st_nlink > 1:
                os.link(path[-1], aside, src_dir_fd=parent, dst_dir_fd=self._aside, follow_symlinks=False)
                self._shared.add(aside)
            else:
                os.rename(path[-1], aside, src_dir_fd=parent, dst_dir_fd=self._aside)
            self._staged[path] = aside

    def _merge(self, upper: int, target: int, lower: _Lower | None) -> None:
        for name in os.listdir(upper):
            self._count += 1
            about = os.stat(name, dir_fd=upper, follow_symlinks=False)
            marks = self._marks(upper, name, about)
            if marks.is_whiteout:
                _remove(target, name)
                continue
            path = _path_below(lower, name, marks)
            if stat.S_ISDIR(about.st_mode):
                self._merge_directory(upper, target, name, marks, path)
            elif about.st_ino in self._links:
                _remove(target, name)
                os.link(
                    self._links[about.st_ino], name, src_dir_fd=self._aside, dst_dir_fd=target, follow_symlinks=False
                )
                continue
            elif marks.is_metacopy:
                self._take_contents(target, name, path if marks.redirect is not None else None)
            else:
                _remove(target, name)
                _create(upper, target, name, about)
            self._set_metadata(upper, name, target, name)
            if about.st_nlink > 1 and not stat.S_ISDIR(about.st_mode):
                self._links[about.st_ino] = f"link{len(self._links)}"
                os.link(
                    name, self._links[about.st_ino], src_dir_fd=target, dst_dir_fd=self._aside, follow_symlinks=False
                )

    def _merge_directory(self, upper: int, target: int, name: str, marks: _Marks, path: _Lower | None) -> None:
        staged = None if marks.redirect is None or path is None else self._staged.pop(path, None)
        if marks.is_opaque or marks.redirect is not None or not _is_directory(target, name):
            _remove(target, name)
            if staged is None or not _is_directory(self._aside, staged):
                os.mkdir(name, 0o700, dir_fd=target)
            else:
                os.rename(staged, name, src_dir_fd=self._aside, dst_dir_fd=target)
        with _opened(name, upper) as below, _opened(name, target) as own:
            self._merge(below, own, path)

    def _take_contents(self, target: int, name: str, moved_from: _Lower | None) -> None:
        """Has a file of which only the metadata were copied up hold what was below, as a file of its own."""
        if moved_from is None:
            if os.stat(name, dir_fd=target, follow_symlinks=False).st_nlink > 1:
                os.rename(name, "shared", src_dir_fd=target, dst_dir_fd=self._aside)
                _copy(self._aside, "shared", target, name)
                os.unlink("shared", dir_fd=self._aside)
            return
        source = self._staged.get(moved_from)
        if source is None:
            raise HostError(f"the overlay shows {'/'.join(moved_from)} as {name}, and there is no such file below")
        _remove(target, name)
        if source in self._shared:
            _copy(self._aside, source, target, name)
        else:
            os.rename(source, name, src_dir_fd=self._aside, dst_dir_fd=target)

    def _marks(self, upper: int, name: str, about: os.stat_result) -> _Marks:
        if stat.S_ISCHR(about.st_mode) and about.st_rdev == 0:
            return _Marks(True, False, None, False)
        place, found = _place(upper, name), {}
        if stat.S_ISDIR(about.st_mode) or stat.S_ISREG(about.st_mode):
            for key in os.listxattr(place, follow_symlinks=False):
                if key.startswith(self._prefix):
                    found[key.removeprefix(self._prefix)] = os.getxattr(place, key, follow_symlinks=False)
        is_file = stat.S_ISREG(about.st_mode)
        redirect = found.get("redirect")
        return _Marks(
            is_whiteout=is_file and about.st_size == 0 and "whiteout" in found,
            is_opaque=found.get("opaque") == b"y",
            redirect=None if redirect is None else os.fsdecode(redirect),
            is_metacopy=is_file and "metacopy" in found,
        )

    def _set_metadata(self, upper: int, name: str, target: int, own_name: str) -> None:
        """Gives an entry the owner, mode, attributes and times that it has in the upper directory."""
        about = os.stat(name, dir_fd=upper, follow_symlinks=False)
        os.chown(own_name, about.st_uid, about.st_gid, dir_fd=target, follow_symlinks=False)
        source, own = _place(upper, name), _place(target, own_name)
        wanted = {
            key: os.getxattr(source, key, follow_symlinks=False)
            for key in os.listxattr(source, follow_symlinks=False)
            if not key.startswith(self._prefix)
        }
        for key in os.listxattr(own, follow_symlinks=False):
            if key not in wanted:
                os.removexattr(own, key, follow_symlinks=False)
        for key, value in wanted.items():
            os.setxattr(own, key, value, follow_symlinks=False)
        if not stat.S_ISLNK(about.st_mode):
            os.chmod(own_name, stat.S_IMODE(about.st_mode), dir_fd=target)
        os.utime(own_name, ns=(about.st_atime_ns, about.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _path_below(lower: _Lower | None, name: str, marks: _Marks) -> _Lower | None:
    """Returns where an entry of a directory that was at `lower` was below the mount, None where it was not."""
    if marks.is_opaque:
        return None
    if marks.redirect is None:
        return None if lower is None else (*lower, name)
    parts = tuple(part for part in marks.redirect.split("/") if part)
    if not parts or {".", ".."} & set(parts):
        raise HostError(
            f"the overlay's upper directory says that {name} was {marks.redirect!r} below, which is no path"
        )
    if marks.redirect.startswith("/"):
        return parts
    return None if lower is None else (*lower, *parts)


@contextmanager
def _opened(name: str, directory: int) -> Iterator[int]:
    fd = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _parent(root: int, path: _Lower) -> Iterator[int]:
    """Opens the directory that a path is in, and follows no symbolic link."""
    fd = os.dup(root)
    try:
        for name in path[:-1]:
            child = os.open(name, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = child
        yield fd
    finally:
        os.close(fd)


def _place(directory: int, name: str) -> str:
    """Returns a path for the calls that take no descriptor of a directory."""
    return f"/proc/self/fd/{directory}/{name}"


def _is_directory(directory: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _remove(directory: int, name: str) -> None:
    if _is_directory(directory, name):
        shutil.rmtree(name, dir_fd=directory)
    else:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


def _create(upper: int, target: int, name: str, about: os.stat_result) -> None:
    """Makes an entry that is no directory, with its contents."""
    if stat.S_ISREG(about.st_mode):
        _copy(upper, name, target, name)
    elif stat.S_ISLNK(about.st_mode):
        os.symlink(os.readlink(name, dir_fd=upper), name, dir_fd=target)
    else:
        os.mknod(name, stat.S_IFMT(about.st_mode) | 0o600, about.st_rdev, dir_fd=target)


def _copy(source: int, name: str, target: int, own_name: str) -> None:
    """Copies a regular file's contents, and leaves its holes."""
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=source)
    try:
        writing = os.open(own_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=target)
        try:
            size, at = os.fstat(reading).st_size, 0
            while at < size:
                try:
                    at = os.lseek(reading, at, os.SEEK_DATA)
                except OSError:
                    break  # what follows is a hole
                end = os.lseek(reading, at, os.SEEK_HOLE)
                while at < end:
                    data = os.pread(reading, min(_COPY_BYTES, end - at), at)
                    if not data:
                        raise HostError(f"{name} changed while it was copied")
                    at += os.pwrite(writing, data, at)
            os.truncate(writing, size)
        finally:
            os.close(writing)
    finally:
        os.close(reading)
