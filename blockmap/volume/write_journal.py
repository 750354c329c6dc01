"""Notes changes of a clone's map that are not durable yet, so that they outlive the server's process.

A client does not repeat what was answered: when a server is killed and its client connects to the next one, the client's next
flush must make durable what it wrote before. The scratch file has the bytes, in the kernel's memory; this file has the map's
changes, likewise. Nobody syncs it: after a crash of the host, which another boot id shows, what it holds beyond the last
flush is not believed, since bytes that it speaks of may be lost.

    0   magic `bmwj`, format 1 (u32), boot id (16 bytes), zeros
    64  records of 32 bytes: number (u64), start and end (u64), kind (u32), CRC-32 of these (u32)

Record n is at place n modulo RECORDS. A change that was not answered may leave none.
"""

import os
import struct
import uuid
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from blockmap.volume.overlay import Kind
from blockmap.volume.scratch import local_error

RECORDS: Final = 1 << 15
"""Changes that can wait for a flush: 1 MiB of records, and some 10 ms to store them."""

_HEADER = struct.Struct("<4sI16s40x")
_FIELDS = struct.Struct("<QQQI")
_CHECK = struct.Struct("<I")
_RECORD_BYTES = _FIELDS.size + _CHECK.size
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class MapChange(NamedTuple):
    """A range that was put into a map."""

    number: int
    start: int
    end: int
    kind: Kind


class WriteJournal:
    """The file of one clone, whose owner numbers the changes; `write` is safe to share between threads.

    Raises DiskFull and HostError.
    """

    def __init__(self, path: Path, boot: bytes, stored: int) -> None:
        """Opens the file, or makes one; `boot` is the id of this boot, `stored` the first number that is not durable."""
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise local_error(path, error) from error
        header = _HEADER.pack(b"bmwj", 1, boot)
        try:
            data = os.pread(self._fd, _HEADER.size + RECORDS * _RECORD_BYTES, 0)
            if data[: len(header)] != header:
                data = b""
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, header, 0)
        except OSError as error:
            os.close(self._fd)
            raise local_error(path, error) from error
        self.found = [change for change in _changes(data) if change.number >= stored]
        """The changes that are not durable, in their order."""

    def write(self, change: MapChange) -> None:
        """Notes a change; none that is not durable may be at its place."""
        fields = _FIELDS.pack(*change)
        place = _HEADER.size + change.number % RECORDS * _RECORD_BYTES
        try:
            os.pwrite(self._fd, fields + _CHECK.pack(zlib.crc32(fields)), place)
        except OSError as error:
            raise local_error(self._path, error) from error

    def close(self) -> None:
        os.close(self._fd)


def boot_id() -> bytes:
    """Returns the id of this boot."""
    return uuid.UUID(_BOOT_ID.read_text().strip()).bytes


def _changes(data: bytes) -> list[MapChange]:
    found = []
    for at in range(_HEADER.size, len(data) - _RECORD_BYTES + 1, _RECORD_BYTES):
        number, start, end, kind = _FIELDS.unpack_from(data, at)
        (check,) = _CHECK.unpack_from(data, at + _FIELDS.size)
        if end > start and check == zlib.crc32(data[at : at + _FIELDS.size]):
            found.append(MapChange(number, start, end, Kind(kind)))
    return sorted(found)
