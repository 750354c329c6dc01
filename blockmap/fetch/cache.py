"""The host's cache: one sparse data file of slots, appended to, and evicted by punching holes.

The index is in memory; a journal on disk follows it. A slot is checked against its header and checksums when it is first
used after a start, never after. Readers use `fd`, `dead` and `used` themselves: look a slot up, preadv, and look at its
mark again; a slot is marked dead before its bytes are punched, so bytes read from one that is alive afterwards are its
own. Slot numbers are never used again while the process lives.

A cache that is full, damaged or gone makes misses, never errors.
"""

import ctypes
import errno
import fcntl
import logging
import os
import shutil
import threading
from array import array
from collections import deque
from contextlib import suppress
from pathlib import Path

from blockmap.errors import HostError
from blockmap.fetch import slot as slots
from blockmap.fetch.journal import Journal
from blockmap.format import BLOCK

_log = logging.getLogger(__name__)

_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_MAX_POSITION = 1 << 43
"""ext4 files end at 2^44 bytes; the data file is begun anew at the first start beyond half of this."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def default_cap(directory: Path) -> int:
    """Bytes that a cache in `directory` may take: 20 GB, or a quarter of the free disk."""
    while not directory.exists():
        directory = directory.parent
    return min(20 * 10**9, shutil.disk_usage(directory).free // 4)


class Cache:
    """Content by digest, in a directory that one server owns; safe to share between threads."""

    def __init__(self, directory: Path, cap_bytes: int) -> None:
        self.directory = directory
        self.cap_bytes = cap_bytes
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._owner = _own(directory / "lock")
            self.fd = os.open(directory / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(f"cannot use the cache {directory}: {error.strerror}; name another with --cache") from error
        self.dead = bytearray()
        """By slot: not 0 once its bytes may be gone."""
        self.used = bytearray()
        """By slot: not 0 where it was read since eviction last looked."""
        self._checked = bytearray()
        self._position = array("Q")  # of the header
        self._mask = array("Q")
        self._length = array("I")
        self._names: list[bytes] = []
        self._index: dict[bytes, int] = {}
        self._queue: deque[int] = deque()  # slots in the order in which eviction looks at them
        self._pins: dict[int, int] = {}
        # Guards the index, the columns and the counters; held neither across I/O nor by readers.
        self._lock = threading.Lock()
        self._bytes = self._end = 0
        self._stored = self._evicted = self._bad = self._failed = 0
        self._journal = Journal(directory / "index.db")
        self._load()

    def lookup(self, digest: bytes) -> int:
        """The slot of a digest, or -1; looks in memory only, and checks nothing."""
        return self._index.get(digest, -1)

    def check(self, slot: int, digest: bytes) -> bool:
        """Whether a slot holds what it should: reads all of it the first time. A bad one is dropped, and said."""
        if self._checked[slot]:
            return not self.dead[slot]
        length, position = self._length[slot], self._position[slot]
        head_length = slots.header_bytes(length)
        try:
            raw = os.pread(self.fd, head_length + slots.blocks_of(length) * BLOCK, position)
        except OSError as error:
            _log.warning("the cache %s cannot be read: %s", self.directory, error)
            raw = b""
        if self.dead[slot]:
            return False
        header = slots.decode_header(raw[:head_length])
        good = (
            header is not None
            and (header.digest, header.length, header.mask) == (digest, length, self._mask[slot])
            and slots.intact(header, raw[head_length:])
        )
        if good:
            self._checked[slot] = 1
            return True
        _log.warning("the cache's copy of %s is damaged; it is dropped, and will be fetched again", digest.hex())
        with self._lock:
            self._bad += 1
        self.discard(slot)
        return False

    def data_position(self, slot: int) -> int:
        """Where the content begins in the data file."""
        return self._position[slot] + slots.header_bytes(self._length[slot])

    def mask(self, slot: int) -> int:
        """The blocks that are present, a bit each."""
        return self._mask[slot]

    def length(self, slot: int) -> int:
        """Bytes of the whole content."""
        return self._length[slot]

    def get(self, digest: bytes) -> bytes | None:
        """The whole content, checked; None where it is absent or held in part."""
        slot = self.lookup(digest)
        if slot < 0 or not self.check(slot, digest) or self._mask[slot] != slots.whole_mask(self._length[slot]):
            return None
        data = self._read(slot)
        if data is not None:
            self.used[slot] = 1
        return data

    def put(self, digest: bytes, data: bytes | bytearray | memoryview, mask: int | None = None) -> int:
        """Keeps content, or those blocks of it that `mask` has; returns its slot, or -1 where it cannot be kept."""
        view = memoryview(data)
        length = len(view)
        whole = slots.whole_mask(length)
        mask = whole if mask is None else mask
        held = self.lookup(digest)
        if held >= 0 and self.check(held, digest):
            if self._mask[held] | mask == self._mask[held]:
                return held
            view, mask = self._merged(held, view, mask)
        head = slots.encode_header(digest, mask, view)
        size = len(head) + _present(length, mask) * BLOCK
        span = len(head) + slots.blocks_of(length) * BLOCK
        with self._lock:
            if size > self.cap_bytes or self._end + span > _MAX_POSITION:
                return -1
            position = self._end
            self._end += span
            self._bytes += size
            victims = self._make_room()
        for victim in victims:
            self._punch(victim)
        try:
            self._write(position, head, view, mask)
        except OSError as error:
            _log.warning("the cache %s cannot be written: %s", self.directory, error)
            with self._lock:
                self._bytes -= size
                self._failed += 1
            self._punch_range(position, span)
            return -1
        with self._lock:
            held = self._index.get(digest, -1)
            superseded = held >= 0 and self._mask[held] | mask == self._mask[held]
            if superseded:
                self._bytes -= size
            else:
                if held >= 0:
                    self._kill(held)
                slot = self._add(position, digest, length, mask)
                self._checked[slot] = 1
                self._stored += 1
                self._journal.add((position, digest, length, mask))
        if superseded:
            self._punch_range(position, span)
            return held
        if held >= 0:
            self._punch(held)
        return slot

    def pin(self, slot: int) -> None:
        """Keeps a slot from being evicted until `unpin`."""
        with self._lock:
            self._pins[slot] = self._pins.get(slot, 0) + 1

    def unpin(self, slot: int) -> None:
        with self._lock:
            self._pins[slot] -= 1
            if not self._pins[slot]:
                del self._pins[slot]

    def discard(self, slot: int) -> None:
        """Drops a slot; -1 and one that is gone are fine."""
        if slot < 0:
            return
        with self._lock:
            if self.dead[slot]:
                return
            self._kill(slot)
        self._punch(slot)

    def scrub(self, limit_bytes: int) -> int:
        """Checks slots that were not used yet since the start, up to so many bytes; returns how many were bad."""
        before = self._bad
        for slot, digest in list(enumerate(self._names)):
            if limit_bytes <= 0:
                break
            if not self.dead[slot] and not self._checked[slot]:
                limit_bytes -= self._length[slot]
                self.check(slot, digest)
        return self._bad - before

    def status(self) -> dict[str, int]:
        with self._lock:
            return {
                "cap_bytes": self.cap_bytes,
                "bytes": self._bytes,
                "slots": len(self._index),
                "stored": self._stored,
                "evicted": self._evicted,
                "bad": self._bad,
                "failed": self._failed,
            }

    def clear(self) -> None:
        """Drops everything that is not pinned."""
        for slot in list(self._index.values()):
            if slot not in self._pins:
                self.discard(slot)

    def flush(self) -> None:
        """Waits until the journal has what the cache has."""
        self._journal.flush()

    def close(self) -> None:
        self._journal.close()
        os.close(self.fd)
        os.close(self._owner)

    def _load(self) -> None:
        size = os.fstat(self.fd).st_size
        if size > _MAX_POSITION // 2:
            os.ftruncate(self.fd, 0)
            size = 0
        self._end = -(-size // BLOCK) * BLOCK
        end = 0
        for position, digest, length, mask in self._journal.load():
            span = slots.header_bytes(length) + slots.blocks_of(length) * BLOCK
            header_end = position + slots.header_bytes(length)
            if len(digest) != 32 or position < end or position % BLOCK or header_end > size or digest in self._index:
                self._journal.remove(position)
                continue
            if position > end:
                self._punch_range(end, position - end)
            end = position + span
            self._bytes += slots.header_bytes(length) + _present(length, mask) * BLOCK
            self._add(position, digest, length, mask)
        if self._end > end:
            self._punch_range(end, self._end - end)
        with self._lock:
            victims = self._make_room()
        for victim in victims:
            self._punch(victim)

    def _add(self, position: int, digest: bytes, length: int, mask: int) -> int:
        slot = len(self._names)
        self._position.append(position)
        self._mask.append(mask)
        self._length.append(length)
        self._checked.append(0)
        self.used.append(0)
        self.dead.append(0)
        self._names.append(digest)
        self._queue.append(slot)
        self._index[digest] = slot
        return slot

    def _kill(self, slot: int) -> None:
        """Marks a slot dead and forgets it; its bytes are punched after the lock is released."""
        self.dead[slot] = 1
        digest = self._names[slot]
        if self._index.get(digest) == slot:
            del self._index[digest]
        length = self._length[slot]
        self._bytes -= slots.header_bytes(length) + _present(length, self._mask[slot]) * BLOCK
        self._journal.remove(self._position[slot])

    def _make_room(self) -> list[int]:
        """Second chance: a slot that was read since the last look goes to the end of the queue once."""
        victims = []
        looks = 2 * len(self._queue)
        while self._bytes > self.cap_bytes and looks > 0 and self._queue:
            looks -= 1
            slot = self._queue.popleft()
            if self.dead[slot]:
                continue
            if self.used[slot] or slot in self._pins:
                self.used[slot] = 0
                self._queue.append(slot)
                continue
            self._kill(slot)
            self._evicted += 1
            victims.append(slot)
        return victims

    def _merged(self, held: int, view: memoryview, mask: int) -> tuple[memoryview, int]:
        """The blocks of `view` and those that a slot holds already."""
        old = self._read(held)
        if old is None or self._length[held] != len(view):
            return view, mask
        joined = bytearray(old)
        for block in range(slots.blocks_of(len(view))):
            if slots.has(mask, block):
                joined[block * BLOCK : (block + 1) * BLOCK] = view[block * BLOCK : (block + 1) * BLOCK]
        return memoryview(joined), mask | self._mask[held]

    def _read(self, slot: int) -> bytes | None:
        length = self._length[slot]
        try:
            data = os.pread(self.fd, length, self.data_position(slot))
        except OSError as error:
            _log.warning("the cache %s cannot be read: %s", self.directory, error)
            return None
        return data if len(data) == length and not self.dead[slot] else None

    def _write(self, position: int, head: bytes, view: memoryview, mask: int) -> None:
        length = len(view)
        if mask == slots.whole_mask(length):
            tail = bytes(-length % BLOCK)
            _write_all(self.fd, [memoryview(head), view, memoryview(tail)], position)
            return
        _write_all(self.fd, [memoryview(head)], position)
        for block in range(slots.blocks_of(length)):
            if slots.has(mask, block):
                piece = memoryview(slots.padded(view, block))
                _write_all(self.fd, [piece], position + len(head) + block * BLOCK)
        end = position + len(head) + slots.blocks_of(length) * BLOCK
        if os.fstat(self.fd).st_size < end:
            with suppress(OSError):
                _libc.fallocate(self.fd, 0, end - 1, 1)

    def _punch(self, slot: int) -> None:
        length = self._length[slot]
        self._punch_range(self._position[slot], slots.header_bytes(length) + slots.blocks_of(length) * BLOCK)

    def _punch_range(self, position: int, length: int) -> None:
        if _libc.fallocate(self.fd, _PUNCH_HOLE, position, length):
            code = ctypes.get_errno()
            if code == errno.EOPNOTSUPP:
                raise HostError(
                    f"the file system of the cache {self.directory} cannot punch holes: name a directory on ext4, xfs, "
                    "btrfs or tmpfs with --cache"
                )
            _log.warning("the cache %s could not free space: %s", self.directory, os.strerror(code))


def _present(length: int, mask: int) -> int:
    """Blocks that are present."""
    blocks = slots.blocks_of(length)
    return mask.bit_count() if blocks <= 64 else blocks


def _write_all(fd: int, parts: list[memoryview], position: int) -> None:
    while parts:
        written = os.pwritev(fd, parts, position)
        position += written
        while parts and written >= len(parts[0]):
            written -= len(parts[0])
            parts = parts[1:]
        if parts:
            parts = [parts[0][written:], *parts[1:]]


def _own(path: Path) -> int:
    """Takes the cache for this process; HostError where another has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise HostError(
            f"the cache {path.parent} is in use by process {owner or 'unknown'}: one server owns a cache, name another "
            "directory with --cache"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
