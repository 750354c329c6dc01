"""Writes cpio archives of the "newc" format, which is what Linux takes as initramfs.

Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import os
import stat
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO


class Archive:
    """One archive; several written one after the other unpack over each other, and make one initramfs."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0
        self._names: set[str] = set()

    def _entry(self, name: str, mode: int, content: bytes, mtime: int = 0) -> None:
        encoded = os.fsencode(name) + b"\0"
        self._inode += 1
        fields = [self._inode, mode, 0, 0, 1, mtime, len(content), 0, 0, 0, 0, len(encoded), 0]
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        self._out.write(head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4))

    def _new(self, name: str) -> bool:
        """Adds what is above `name`; whether it is not there yet."""
        parent = os.path.dirname(name)
        if parent:
            self.folder(parent)
        if name in self._names:
            return False
        self._names.add(name)
        return True

    def folder(self, name: str) -> None:
        if self._new(name):
            self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644, mtime: int = 0) -> None:
        if self._new(name):
            self._entry(name, stat.S_IFREG | mode, content, mtime)

    def link(self, name: str, target: str) -> None:
        if self._new(name):
            self._entry(name, stat.S_IFLNK | 0o777, os.fsencode(target))

    def tree(self, path: Path, name: str, leave_out: str = "__pycache__") -> None:
        """A file, symbolic link or folder of this machine with all that is in it, save what matches a pattern: bytecode."""
        if path.is_symlink():
            self.link(name, os.readlink(path))
        elif path.is_dir():
            self.folder(name)
            for child in sorted(path.iterdir()):
                if not fnmatch(child.name, leave_out):
                    self.tree(child, f"{name}/{child.name}", leave_out)
        elif path.is_file():
            status = path.stat()
            self.file(
                name, path.read_bytes(), stat.S_IMODE(status.st_mode), int(status.st_mtime)
            )  # Python's bytecode has it

    def close(self) -> None:
        self._entry("TRAILER!!!", 0, b"")
