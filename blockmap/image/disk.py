"""Disk images as they are: raw files, and what qemu-img can read."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from blockmap.errors import HostError, ImageError

_PIECE_BYTES = 1 << 20


class DiskSource:
    """The bytes of a disk."""

    def __init__(self, path: Path, work: Path) -> None:
        self._path = path
        self._copy: Path | None = None
        kind = _probe(path)
        if kind != "raw":
            self._copy = self._path = work / "disk.raw"
            _qemu_img("convert", "-f", kind, "-O", "raw", str(path), str(self._copy))
        self.size = os.stat(self._path).st_size
        """Bytes."""
        if self.size == 0:
            raise ImageError(f"{path} is empty: a disk image is expected")

    def extents(self) -> Iterator[tuple[int, bytes]]:
        """The data of the disk, ascending, each piece with its offset in bytes; holes are left out."""
        with open(self._path, "rb") as file:
            at = 0
            while at < self.size:
                try:
                    start = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError as error:
                    if error.errno == errno.ENXIO:
                        return
                    raise ImageError(f"cannot read {self._path}: {error.strerror}") from error
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                for offset in range(start, end, _PIECE_BYTES):
                    data = os.pread(file.fileno(), min(_PIECE_BYTES, end - offset), offset)
                    if not data:
                        raise ImageError(f"{self._path} changed while it was read: import a disk that nobody writes to")
                    yield offset, data
                at = end

    def close(self) -> None:
        if self._copy is not None:
            self._copy.unlink(missing_ok=True)


def _probe(path: Path) -> str:
    """The format of a disk image; ImageError where it refers to other files."""
    if shutil.which("qemu-img") is None:
        raise HostError(f"qemu-img is needed to read {path} and is not installed: apt-get install qemu-utils")
    found = json.loads(_qemu_img("info", "--output=json", str(path)))
    specific = found.get("format-specific", {}).get("data", {})
    if found.get("backing-filename") or specific.get("data-file") or found["format"] in ("vmdk",):
        raise ImageError(
            f"{path} refers to other files: make it whole with `qemu-img convert -O qcow2`, then import that"
        )
    return str(found["format"])


def _qemu_img(*arguments: str) -> str:
    done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"qemu-img {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout
