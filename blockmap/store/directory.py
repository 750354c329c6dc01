"""A store in a directory, of a local disk or a network file system."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from blockmap import disk
from blockmap.errors import Corrupt, NotFound, StoreUnavailable, UsageError
from blockmap.store.base import Buffer

_OPEN_FILES = 64


class DirectoryStore:
    """Objects as files; create-only by link(2), durable when a call returns."""

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self._root = root
        self._lock = threading.Lock()  # guards _open; not held across reads
        self._open: OrderedDict[str, _File] = OrderedDict()

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except OSError as error:
            raise self._explain(key, error) from error

    def get_range(self, key: str, start: int, end: int) -> bytes:
        file = self._file(key)
        try:
            data = os.pread(file.fd, end - start, start)
            while len(data) < end - start:
                more = os.pread(file.fd, end - start - len(data), start + len(data))
                if not more:
                    raise Corrupt(f"{self.url}/{key} ends at byte {start + len(data)}, before byte {end}")
                data += more
        except OSError as error:
            raise self._explain(key, error) from error
        return data

    def list(self, prefix: str) -> list[str]:
        found = []
        top = self._path(prefix.rstrip("/")) if prefix else self._root
        try:
            for directory, _, names in os.walk(top, onerror=_raise):
                base = os.path.relpath(directory, self._root)
                for name in names:
                    if not name.startswith(disk.TEMPORARY):
                        found.append(name if base == "." else f"{base}/{name}")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreUnavailable(f"cannot list {self.url}/{prefix}: {error.strerror}") from error
        return sorted(found)

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        disk.publish(self._path(key), parts)

    def replace(self, key: str, data: bytes) -> None:
        disk.replace(self._path(key), data)

    def delete(self, key: str) -> None:
        with self._lock:
            self._open.pop(key, None)
        disk.remove(self._path(key))

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if any(part in ("", ".", "..") or part.startswith(disk.TEMPORARY) or "\0" in part for part in parts):
            raise UsageError(
                f"{key!r} is not a key: components that are empty, dots or temporary names are not allowed"
            )
        return self._root.joinpath(*parts)

    def _file(self, key: str) -> "_File":
        with self._lock:
            file = self._open.get(key)
            if file is not None:
                self._open.move_to_end(key)
                return file
        try:
            file = _File(os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise self._explain(key, error) from error
        with self._lock:
            self._open[key] = file
            while len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return file

    def _explain(self, key: str, error: OSError) -> Exception:
        if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
            return NotFound(f"there is no {key} in {self.url}")
        return StoreUnavailable(f"cannot read {self.url}/{key}: {error.strerror}")


class _File:
    """A descriptor that is closed when nobody reads through it any more."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def _raise(error: OSError) -> None:
    raise error
