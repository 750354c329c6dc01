"""Says which file, directory and package a block of a volume belongs to."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from blockmap.format import BLOCK
from blockmap.format.filemap import File

Numbers = npt.NDArray[np.int64]

METADATA: Final = "(metadata of the file system)"
UNKNOWN: Final = "(files are not known)"
_DIRECTORY_DEPTH = 4
_LIBRARIES = re.compile(rb"(?:^|/)(?:site-packages|dist-packages|node_modules)/(@[^/]+/[^/]+|[^/]+)")
_COMPILED = re.compile(rb"(.*/)__pycache__/([^/.]+)\.[^/]*\.pyc", re.DOTALL)
_MERGED = (b"bin/", b"sbin/", b"lib/", b"lib64/")
"""Directories of the root that became links into usr/; packages still name files by them."""


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a volume, by block; file number 0 stands for all blocks of no file."""

    paths: Sequence[bytes]
    """Paths of file 1, 2, ..."""
    starts: Numbers
    """First block of each run, ascending."""
    ends: Numbers
    numbers: Numbers
    """The number of each run's file."""

    def find(self, blocks: Numbers) -> Numbers:
        """Returns the number of the file of each block."""
        if not len(self.starts):
            return np.zeros(len(blocks), np.int64)
        at = np.searchsorted(self.starts, blocks, "right") - 1
        return np.where((at >= 0) & (blocks < self.ends[at]), self.numbers[at], 0)

    def labels(self, label: Callable[[bytes], str]) -> list[str]:
        """Returns what `label` says of each path, by file number."""
        return [METADATA if self.paths else UNKNOWN, *(label(path) for path in self.paths)]


def index(files: Sequence[File]) -> Files:
    """Returns files by their blocks; where two paths are one file, the first stands for both."""
    runs = np.array(
        [(start, start + blocks, number) for number, file in enumerate(files, 1) for start, blocks in file.runs],
        np.int64,
    ).reshape(-1, 3)
    _, first = np.unique(runs[:, 0], return_index=True)
    starts, ends, numbers = runs[first].T
    return Files([file.path for file in files], starts, ends, numbers)


def shown(path: bytes) -> str:
    r"""Returns a path as text in which what cannot be printed, and a backslash, is \xNN or \uNNNN."""
    text = path.decode("utf-8", "surrogateescape")
    return "/" + "".join(_escaped(c) if c == "\\" or not c.isprintable() else c for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def directory(path: bytes) -> str:
    """Returns the file's directory, at most four deep."""
    return shown(b"/".join(path.split(b"/")[:-1][:_DIRECTORY_DEPTH]))


def packager(owners: Mapping[bytes, str]) -> Callable[[bytes], str]:
    """Returns a function from path to package: the distribution's, else the library in its language's folder, else the folder."""

    def package(path: bytes) -> str:
        compiled = _COMPILED.fullmatch(path)
        owner = owners.get(path) or (owners.get(compiled[1] + compiled[2] + b".py") if compiled else None)
        if owner is not None:
            return owner
        found = _LIBRARIES.search(path)
        return shown(found[1])[1:] if found and not path.endswith(found[1]) else directory(path)

    return package


def owners(files: Sequence[File], read: Callable[[int, int], bytes]) -> dict[bytes, str]:
    """Returns the packages of files by Debian's or Alpine's records in the volume; `read` takes bytes (offset, length)."""
    found: dict[bytes, str] = {}
    for file in files:
        if file.path.startswith(b"var/lib/dpkg/info/") and file.path.endswith(b".list"):
            name = shown(file.path.rpartition(b"/")[2][: -len(b".list")])[1:].partition(":")[0]
            for line in _content(file, read).splitlines():
                path = line.lstrip(b"/")
                found[path] = name
                if path.startswith(_MERGED):
                    found.setdefault(b"usr/" + path, name)
        elif file.path in (b"lib/apk/db/installed", b"usr/lib/apk/db/installed"):
            found.update(_alpine(_content(file, read)))
    return found


def _content(file: File, read: Callable[[int, int], bytes]) -> bytes:
    return b"".join(read(start * BLOCK, blocks * BLOCK) for start, blocks in file.runs)[: file.size]


def _alpine(database: bytes) -> Iterator[tuple[bytes, str]]:
    name, folder = "", b""
    for line in database.splitlines():
        kind, _, value = line.partition(b":")
        if kind == b"P":
            name = shown(value)[1:]
        elif kind == b"F":
            folder = value + b"/" if value else b""
        elif kind == b"R":
            yield folder + value, name
