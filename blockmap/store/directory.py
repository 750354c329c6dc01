"""Stores objects in a directory, of a local disk or a network file system."""

import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from blockmap import durable
from blockmap.errors import Corrupt, NotAStore, NotFound, StoreUnavailable, UsageError
from blockmap.format import keys
from blockmap.store import limits
from blockmap.store.base import Buffer, Listed, too_long

_OPEN_FILES = 64
_LONG_BYTES = 1 << 20
"""Bytes of a range above which the file's length is looked at first."""


class _File:
    """A descriptor that is closed when nobody reads through it any more."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class DirectoryStore:
    """Objects as files; create-only by link(2), durable when a call returns."""

    local = True

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self._root = root
        self._lock = threading.Lock()  # guards _open; not held across reads
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._settled: set[Path] = set()
        """Directories whose names are known to be durable; adding to a set needs no lock."""
        self._seen = False
        """True once a store was seen here: if it has gone since, its file system is not mounted, or it was moved away."""

    def get(self, key: str, most: int = limits.RECORD) -> bytes:
        try:
            data = self._read_whole(key, most)
        except OSError as error:
            raise self._explain(key, error) from error
        self._seen = self._seen or key == keys.FORMAT
        return data

    def get_range(self, key: str, start: int, end: int) -> bytes:
        try:
            try:
                return self._read(key, start, end)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                # Over NFS another host may have deleted the file that this one has open: look again.
                self._forget(key)
                return self._read(key, start, end)
        except OSError as error:
            raise self._explain(key, error) from error

    def list(self, prefix: str) -> list[str]:
        found = []
        top = self._path(prefix.rstrip("/")) if prefix else self._root
        try:
            for directory, _, names in os.walk(top, onerror=_unless_absent):
                base = os.path.relpath(directory, self._root)
                for name in names:
                    if not name.startswith(durable.TEMPORARY):
                        found.append(name if base == "." else f"{base}/{name}")
        except OSError as error:
            raise self._explain(prefix, error) from error
        return sorted(found)

    def exists(self, key: str) -> bool:
        try:
            return stat.S_ISREG(os.stat(self._path(key)).st_mode)
        except (FileNotFoundError, NotADirectoryError) as error:
            if self._is_gone():
                raise self._explain(key, error) from error
            return False
        except OSError as error:
            raise self._explain(key, error) from error

    def size(self, key: str) -> int:
        return self._about(key).st_size

    def listing(self, prefix: str) -> dict[str, Listed]:
        found = {}
        for key in self.list(prefix):
            with suppress(NotFound):  # deleted since
                about = self._about(key)
                found[key] = Listed(about.st_size, about.st_mtime)
        return found

    def modified(self, key: str) -> float:
        return self._about(key).st_mtime

    def leftovers(self) -> dict[str, float]:
        """Returns the paths of temporary files, which a crash leaves behind, with the times when they were written."""
        found = {}
        for directory, _, names in os.walk(self._root):
            for name in names:
                if name.startswith(durable.TEMPORARY):
                    path = os.path.join(directory, name)
                    with suppress(FileNotFoundError):
                        found[path] = os.stat(path).st_mtime
        return found

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        path = self._path(key)
        if path.parent not in self._settled:
            durable.settle(path.parent, self._root)
            self._settled.add(path.parent)
        durable.publish(path, parts)

    def replace(self, key: str, data: bytes) -> None:
        durable.replace(self._path(key), data)
        self._forget(key)

    def delete(self, key: str) -> None:
        durable.remove(self._path(key))
        self._forget(key)

    def contents(self) -> Sequence[str]:
        """The names at the top of the directory; none where it is absent. NotAStore where none can be made there."""
        try:
            return sorted(os.listdir(self._root))
        except FileNotFoundError:
            link = next((each for each in (self._root, *self._root.parents) if each.is_symlink()), None)
            if link is not None and not link.exists():
                raise NotAStore(
                    f"{link} is a symbolic link to {os.readlink(link)}, which is not there: make that directory, or name another"
                ) from None
            return []
        except NotADirectoryError:
            raise NotAStore(f"{self.url} is a file: name a directory that is absent or empty") from None
        except OSError as error:
            raise StoreUnavailable(f"cannot list {self.url}: {error.strerror}; check its permissions") from error

    def _about(self, key: str) -> os.stat_result:
        try:
            found = os.stat(self._path(key))
        except OSError as error:
            raise self._explain(key, error) from error
        if not stat.S_ISREG(found.st_mode):
            raise NotFound(f"there is no {key} in {self.url}")
        return found

    def _path(self, key: str) -> Path:
        keys.check(key)
        return self._root / key

    def _read_whole(self, key: str, most: int) -> bytes:
        file = _open(self._path(key))
        size = os.fstat(file.fd).st_size
        if size > most:
            raise too_long(self.url, key, size, most)
        data = os.pread(file.fd, size, 0)
        while len(data) < size and (more := os.pread(file.fd, size - len(data), len(data))):
            data += more
        return data

    def _read(self, key: str, start: int, end: int) -> bytes:
        file = self._file(key)
        if end - start > _LONG_BYTES and (size := os.fstat(file.fd).st_size) < end:  # memory is taken for all at once
            raise Corrupt(f"{self.url}/{key} ends at byte {size}, before byte {end}")
        data = os.pread(file.fd, end - start, start)
        while len(data) < end - start:
            more = os.pread(file.fd, end - start - len(data), start + len(data))
            if not more:
                raise Corrupt(f"{self.url}/{key} ends at byte {start + len(data)}, before byte {end}")
            data += more
        return data

    def _file(self, key: str) -> _File:
        with self._lock:
            file = self._open.get(key)
            if file is not None:
                self._open.move_to_end(key)
                return file
        file = _open(self._path(key))
        with self._lock:
            self._open[key] = file
            while len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return file

    def _forget(self, key: str) -> None:
        with self._lock:
            self._open.pop(key, None)

    def _explain(self, key: str, error: OSError) -> Exception:
        if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
            if self._is_gone():
                with self._lock:
                    self._open.clear()  # these would still answer
                return StoreUnavailable(f"the store {self.url} is not there any more: check that it is mounted")
            return NotFound(f"there is no {key} in {self.url}")
        return StoreUnavailable(
            f"cannot read {self.url}/{key}: {error.strerror}; check that the store is mounted, and its permissions"
        )

    def _is_gone(self) -> bool:
        return self._seen and not os.path.exists(self._root / keys.FORMAT)


def _open(path: Path) -> _File:
    """Opens a file to read. Raises OSError, for what is no regular file too: who opened a FIFO would wait for its writer."""
    file = _File(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    if not stat.S_ISREG(os.fstat(file.fd).st_mode):
        raise FileNotFoundError(errno.ENOENT, "it is no regular file", str(path))
    return file


def _unless_absent(error: OSError) -> None:
    """Raises an error unless it means absence: a prefix without objects may have no directory, an object has nothing below it."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


def open_directory(url: str) -> DirectoryStore:
    """Returns the store in the directory that a path or file:///DIRECTORY names; UsageError."""
    scheme, colon, rest = url.partition("://")
    if not colon:
        return DirectoryStore(Path(os.path.abspath(url)))
    if scheme == "file" and rest.startswith("/"):
        return DirectoryStore(Path(rest))
    raise UsageError(f"{url} is not a directory's URL: write file:///DIRECTORY, or the path alone")
