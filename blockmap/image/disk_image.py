"""Reads disk images: raw files, and formats that qemu-img can read.

A disk image may come from anybody, and several formats can name other files: those of this host would be read into the
store. So an image that names other files is refused, before qemu-img opens it if its header shows them, and the format
that was found is stated in every further call.
"""

import errno
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blockmap.errors import HostError, ImageError, UsageError

_PIECE_BYTES = 1 << 20
_QCOW2 = b"QFI\xfb"
_EXTERNAL_DATA = 1 << 2
"""Bit of a qcow2's incompatible features for external data (qemu, docs/interop/qcow2.txt)."""
_VMDK = re.compile(rb"KDMV|COWD|(?:#[^\n]*\n| *\r?\n)*version=")
"""The beginning of a VMware disk, whose descriptor usually names other files: qemu-img info opens them, and does not list them."""
_VDI_MAGIC = b"\x7f\x10\xda\xbe"
_ARCHIVES = (
    (0, b"\x1f\x8b"),
    (0, b"\x28\xb5\x2f\xfd"),
    (0, b"\xfd7zXZ\0"),
    (0, b"BZh"),
    (0, b"PK\3\4"),
    (257, b"ustar"),
)


_NO_TEXT = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
_SECTOR_BYTES = 512
_MARKED_BYTES = 0x10048
"""The end of the last of the marks, that of Btrfs."""
_MARKS = (
    (510, b"\x55\xaa"),  # a partition table, FAT, NTFS
    (512, b"EFI PART"), (512, b"LABELONE"), (0, b"LUKS\xba\xbe"), (4086, b"SWAPSPACE2"),
    (0x438, b"\x53\xef"), (0, b"XFSB"), (0x10040, b"_BHRfS_M"), (0, b"hsqs"), (1024, b"\xe2\xe1\xf5\xe0"), (32769, b"CD001"),
)  # fmt: skip
"""What partition tables and superblocks have, by offset: GPT, LVM, LUKS, swap, ext4, XFS, Btrfs, squashfs, EROFS, ISO 9660."""


class DiskSource:
    """The bytes of a disk."""

    def __init__(self, path: Path, work: Path) -> None:
        self._path = path
        self._copy: Path | None = None
        kind = _probe(path)
        if kind == "raw":
            _check_disk(path)
        else:
            descriptor, name = tempfile.mkstemp(prefix="disk-", suffix=".raw", dir=work)
            os.close(descriptor)
            self._path = self._copy = Path(name)
            try:
                _check_whole(kind, path)
                _qemu_img("convert", "-f", kind, "-O", "raw", os.path.abspath(path), name)
            except BaseException:
                self.close()
                raise
        self.size = os.stat(self._path).st_size
        """Size of the disk in bytes."""
        if self.size == 0:
            self.close()
            raise ImageError(f"{path} is empty: a disk image is expected")

    def extents(self) -> Iterator[tuple[int, bytes]]:
        """Yields the data of the disk, ascending, each piece with its offset in bytes; holes are left out."""
        try:
            with open(self._path, "rb") as file:
                yield from self._pieces(file.fileno())
        except OSError as error:
            raise ImageError(f"cannot read {self._path}: {error.strerror or error}") from error

    def _pieces(self, fd: int) -> Iterator[tuple[int, bytes]]:
        at = 0
        while at < self.size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            end = min(os.lseek(fd, at, os.SEEK_HOLE), self.size)
            while at < end:
                data = os.pread(fd, min(_PIECE_BYTES, end - at), at)
                if not data:
                    break
                yield at, data
                at += len(data)
            if at < end:
                break
        if os.fstat(fd).st_size != self.size:
            raise ImageError(f"{self._path} changed its size while it was read: import a disk that nobody writes to")

    def close(self) -> None:
        if self._copy is not None:
            self._copy.unlink(missing_ok=True)


def _probe(path: Path) -> str:
    """Returns the format of a disk image. Raises ImageError if it refers to other files, UsageError for an archive."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
    if any(head.startswith(magic, at) for at, magic in _ARCHIVES):
        raise UsageError(
            f"{path} is an archive, not a disk image: say docker-archive:{path} for what docker save wrote, "
            f"oci-archive:{path} for an OCI layout, or unpack it and import the directory or the disk image"
        )
    if head.startswith(_QCOW2):
        _check_qcow2(head, path)
    if _VMDK.match(head):
        raise _refers(path, "vmdk")
    if shutil.which("qemu-img") is None:
        raise HostError(f"qemu-img is needed to read {path} and is not installed: apt-get install qemu-utils")
    found: dict[str, Any] = json.loads(_qemu_img("info", "--output=json", os.path.abspath(path)))
    kind = str(found["format"])
    specific = found.get("format-specific", {}).get("data", {})
    if found.get("backing-filename") or specific.get("data-file") or kind == "vmdk":
        raise _refers(path, kind)
    if found.get("encrypted"):
        raise ImageError(f"{path} is encrypted: decrypt it with qemu-img convert, then import that")
    return kind


def _check_disk(path: Path) -> None:
    """Refuses a file of raw bytes that can be no disk: neither whole sectors, nor anything that a disk begins with."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_MARKED_BYTES)
    if size % _SECTOR_BYTES == 0 or any(head.startswith(mark, at) for at, mark in _MARKS):
        return
    kind = "data" if _NO_TEXT.search(head) else "text"
    raise UsageError(
        f"{path} is no disk image: it is {kind}, {size:,} bytes without a partition table or a file system that is known, and not "
        f"whole sectors of {_SECTOR_BYTES} bytes. To import files, name the directory that they are in"
    )


def _check_qcow2(head: bytes, path: Path) -> None:
    """Refuses references to other files by the header alone: qemu-img info itself may open an external data file."""
    if len(head) < 104:
        raise ImageError(f"{path} is a qcow2 image that ends in its header: it is truncated, get it again")
    version, backing = struct.unpack_from(">IQ", head, 4)
    (incompatible,) = struct.unpack_from(">Q", head, 72) if version >= 3 else (0,)
    if backing or incompatible & _EXTERNAL_DATA:
        raise _refers(path, "qcow2")


def _check_whole(kind: str, path: Path) -> None:
    """Refuses truncated images, behind whose end qemu-img convert reads zeros without an error."""
    # 2: corrupt; 3: space is leaked, which does not harm readers; 63: this format has no check.
    said = _qemu_img("check", "--output=json", "-f", kind, os.path.abspath(path), fine=(0, 2, 3, 63))
    found: dict[str, Any] = json.loads(said) if said.strip() else {}
    damaged = bool(found.get("corruptions") or found.get("check-errors"))
    if kind == "vdi":  # its check does not look at the length
        with open(path, "rb") as file:
            head = file.read(512)
        start, block_bytes, blocks = (struct.unpack_from("<I", head, at)[0] for at in (0x158, 0x178, 0x184))
        damaged = head[64:68] != _VDI_MAGIC or os.stat(path).st_size < start + block_bytes * blocks
    if damaged:
        raise ImageError(f"{path} is a {kind} image that is damaged or truncated: get it again")


def _refers(path: Path, kind: str) -> ImageError:
    return ImageError(
        f"{path} is a {kind} image that refers to other files, or may do so: they would be read from this host; "
        "if you trust it, make it whole with `qemu-img convert -O qcow2`, then import that"
    )


def _qemu_img(*arguments: str, fine: tuple[int, ...] = (0,)) -> str:
    """Runs qemu-img; file names must be absolute, so that none is taken for a protocol or an option."""
    done = subprocess.run(["qemu-img", *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode not in fine:
        raise ImageError(f"qemu-img {arguments[0]} failed: {done.stderr.decode('utf-8', 'replace').strip()}")
    return done.stdout.decode("utf-8", "replace")
