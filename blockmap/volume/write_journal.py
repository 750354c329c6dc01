"""Notes changes of a clone's map that are not durable yet, so that they outlive the server's process.

A client does not repeat what was answered: when a server is killed and its client connects to the next one, the client's next
flush must make durable what it wrote before. The scratch file has the bytes, in the kernel's memory; this file has the map's
changes, likewise. Nobody syncs it: after a crash of the host, which another boot id shows, what it holds beyond the last
flush is not believed, since bytes that it speaks of may be lost.

    0   magic `bmwj`, format 1 (u32), boot id (16 bytes), zeros
    64  records of 32 bytes: number (u64), start and end (u64), kind (u32), CRC-32 of these (u32)

Record n is at place n modulo RECORDS. A change that was not answered may leave none.
"""

import mmap
import os
import struct
import threading
import uuid
import zlib
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from blockmap.local import holes
from blockmap.volume.overlay import Kind
from blockmap.volume.scratch import local_error

RECORDS: Final = 1 << 18
"""Changes that can wait for a flush: 8 MiB of records. A flush that nobody asked for costs the disk's time: the blocks of 512 MiB
that were written at random can wait for one."""

_HEADER = struct.Struct("<4sI16s40x")
_FIELDS = struct.Struct("<QQQI")
_CHECK = struct.Struct("<I")
_RECORD_BYTES = _FIELDS.size + _CHECK.size
_FILE_BYTES = _HEADER.size + RECORDS * _RECORD_BYTES
_STEP_BYTES = 1 << 20
"""Room that the file takes at once, as changes come to need it."""
_FOUND = np.dtype([("number", "<u8"), ("start", "<u8"), ("end", "<u8"), ("kind", "<u4"), ("check", "<u4")])
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
            data = os.pread(self._fd, _FILE_BYTES, 0)
            if data[: len(header)] != header:
                data = b""
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, header, 0)
        except OSError as error:
            os.close(self._fd)
            raise local_error(path, error) from error
        self.found = _changes(data, stored)
        """The changes that are not durable, in their order."""
        # Guards what follows; held while the file is allocated.
        self._lock = threading.Lock()
        self._memory: mmap.mmap | None = None
        """The file, as far as it has room. A call of the system for each change would be a good part of what a write takes,
        most of it to get the interpreter back."""
        self._room = 0
        """Bytes of the memory."""
        self._maps = holes.writes_in_place(self._fd)
        """False where a write to memory of the file might need room on the disk, and end the process if there is none."""

    def write(self, change: MapChange) -> None:
        """Notes a change; none that is not durable may be at its place."""
        fields = _FIELDS.pack(*change)
        record = fields + _CHECK.pack(zlib.crc32(fields))
        place = _HEADER.size + change.number % RECORDS * _RECORD_BYTES
        memory = self._memory if place < self._room else self._map(place)
        if memory is not None:
            memory[place : place + _RECORD_BYTES] = record
            return
        try:
            os.pwrite(self._fd, record, place)
        except OSError as error:
            raise local_error(self._path, error) from error

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
        os.close(self._fd)

    def _map(self, place: int) -> mmap.mmap | None:
        """Gives the file room up to a place and beyond; returns its memory, or None where changes are written by calls."""
        with self._lock:
            if place >= self._room and self._maps:
                room = min((place // _STEP_BYTES + 1) * _STEP_BYTES, _FILE_BYTES)
                code = holes.allocate(self._fd, 0, room)
                if code in holes.CANNOT:
                    self._maps = False
                elif code:
                    raise local_error(self._path, OSError(code, os.strerror(code)))
                else:
                    # What others write to the memory of before is in the same file.
                    self._memory, self._room = mmap.mmap(self._fd, room), room
            return self._memory


def boot_id() -> bytes:
    """Returns the id of this boot."""
    return uuid.UUID(_BOOT_ID.read_text().strip()).bytes


def _changes(data: bytes, stored: int) -> list[MapChange]:
    """Returns the changes from `stored` on, in their order."""
    count = max(len(data) - _HEADER.size, 0) // _RECORD_BYTES
    records = np.frombuffer(data, _FOUND, count, min(_HEADER.size, len(data)))
    found = []
    for at in np.flatnonzero((records["number"] >= stored) & (records["end"] > records["start"])):
        place = _HEADER.size + int(at) * _RECORD_BYTES
        number, start, end, kind = _FIELDS.unpack_from(data, place)
        (check,) = _CHECK.unpack_from(data, place + _FIELDS.size)
        if check == zlib.crc32(data[place : place + _FIELDS.size]):
            found.append(MapChange(number, start, end, Kind(kind)))
    return sorted(found)
