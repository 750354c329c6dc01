"""The one place of fsync, link and rename.

A file that is published is whole and durable, or absent: written under a temporary name in the same directory, synced,
linked to its name, and the directories that changed are synced before the call returns.
"""

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from blockmap.errors import AlreadyExists, StoreReadOnly, StoreRefused, StoreUnavailable

Buffer = bytes | bytearray | memoryview

TEMPORARY = ".tmp-"
"""Prefix of the names of temporary files: a crash leaves them behind, and no listing shows them."""

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of link(2) on file systems without hard links; a lack of permission is EACCES."""


def publish(path: Path, parts: Sequence[Buffer], mode: int = 0o644) -> None:
    """Creates `path` with the concatenation of `parts`; it is durable when this returns. Raises AlreadyExists."""
    with _explained(path):
        made = _make_directories(path.parent)
        temporary = _write(path, parts, mode)
        try:
            os.link(temporary, path)
        except FileExistsError:
            sync_directory(path.parent)  # its creator may not have done this yet: a file that exists must be durable
            raise AlreadyExists(f"{path} exists already") from None
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise StoreRefused(
                    f"the file system of {path.parent} cannot make hard links ({error.strerror}), "
                    "which create-only objects need: use a directory on another file system"
                ) from error
            raise
        finally:
            os.unlink(temporary)
        for directory in (path.parent, *made):
            sync_directory(directory)


def replace(path: Path, data: Buffer) -> None:
    """Replaces the content of `path` by `data` in one step, or creates it."""
    with _explained(path):
        made = _make_directories(path.parent)
        temporary = _write(path, [data])
        try:
            os.rename(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        for directory in (path.parent, *made):
            sync_directory(directory)


def settle(directory: Path, top: Path) -> None:
    """Makes `directory` and its missing parents, and syncs all of them up to `top`.

    A directory that exists may have been made a moment ago by a process that has not synced it yet, or was killed.
    """
    with _explained(directory):
        changed = _make_directories(directory)
        while directory != top:
            directory = directory.parent
            changed.append(directory)
        for parent in dict.fromkeys(changed):
            sync_directory(parent)


def remove(path: Path) -> None:
    """Removes a file durably; an absent one is no error."""
    with _explained(path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(path: Path, parts: Sequence[Buffer], mode: int = 0o644) -> Path:
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(fd, view) :]
        os.fsync(fd)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    return temporary


def _make_directories(path: Path) -> list[Path]:
    """Makes `path` and its missing parents; returns the directories whose entries changed, lowest first."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(directory)
    return [directory.parent for directory in missing]


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreUnavailable(f"no room left to write {path}: free some space, then try again") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StoreReadOnly(
                f"cannot write {path}: {error.strerror}; check its permissions and mount options"
            ) from error
        raise StoreUnavailable(f"cannot write {path}: {error.strerror or error}") from error
