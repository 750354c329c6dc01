"""Keeps the host's cache: one sparse data file of slots, appended to, and evicted by punching holes.

The index is in memory; a journal on disk follows it. A slot is checked against its header and checksums when it is first
used after a start, never after. Readers use `fd`, `dead` and `used` themselves: look a slot up, preadv, and look at its
mark again; a slot is marked dead before its bytes are punched, so bytes read from one that is alive afterwards are its
own. Slot numbers are never used again while the process lives; positions only after everything was dropped.

A cache that is full, damaged or gone makes misses, never errors. One whose directory was removed or replaced begins anew in
the same place: the descriptor `fd` stays, with an empty file behind it.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from blockmap.cache import slot as slots
from blockmap.cache.datafile import DataFile
from blockmap.cache.journal import INDEX, Journal
from blockmap.cache.slot_table import SlotTable
from blockmap.errors import HostError
from blockmap.format import BLOCK

_log = logging.getLogger(__name__)

_MAX_POSITION = 1 << 43
"""Bytes of the data file, half of what ext4 allows; where it would grow beyond, the cache begins anew, empty."""
_DRAIN_SECONDS = 1.0
"""Seconds that writes under way get to end before the cache begins anew in a new directory, or else at the next look."""
_LOG_AGAIN_SECONDS = 60.0
"""Seconds between two messages about a disk that fails."""


def default_cap(directory: Path) -> int:
    """Returns the bytes that a cache in `directory` may take: 20 GB, or a quarter of what is free or its own if that is less."""
    try:
        own = (directory / "data").stat().st_blocks * 512
    except OSError:
        own = 0
    while not directory.exists():
        directory = directory.parent
    return min(20 * 10**9, (shutil.disk_usage(directory).free + own) // 4)


class Cache:
    """Holds content by digest, in a directory that one server owns; safe to share between threads.

    Raises HostError if the directory cannot be used, or belongs to another server.
    """

    def __init__(self, directory: Path, cap_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.directory = directory
        self.cap_bytes = cap_bytes
        self._clock = clock
        self._data = DataFile(directory)
        self.fd = self._data.fd
        self._table = SlotTable()
        self.dead = self._table.dead
        """By slot: not 0 once its bytes may be gone."""
        self.checked = self._table.checked
        """By slot: not 0 once its checksums have been verified."""
        self.used = self._table.used
        """By slot: not 0 if it was read since eviction last looked."""
        # Taken before _lock by whoever makes room, and held while it punches, so that what it frees is its own and the
        # cap holds on disk.
        self._room = threading.Lock()
        # Guards the table, _busy, _end and the counters; never held across I/O, and not taken by readers.
        self._lock = threading.Lock()
        self._busy = 0  # slots being written, or dead and not punched yet
        self.can_write = True
        """Whether the last write worked; if not, nothing is worth fetching ahead."""
        self.missing = False
        """True while there is no directory to write to."""
        self._replaced = 0
        self._end = self._scrubbed = 0
        self._stored = self._evicted = self._bad = self._lost = self._failed = 0
        self._logged = float("-inf")
        self._journal = Journal(directory / INDEX)
        self._load()

    def lookup(self, digest: bytes) -> int:
        """Returns the slot of a digest, or -1; it looks in memory only, and checks nothing."""
        return self._table.index.get(digest, -1)

    def has(self, digest: bytes) -> bool:
        """Returns True if some of it is there, unchecked."""
        return digest in self._table.index

    def has_all(self, digest: bytes) -> bool:
        """Returns True if all of it is there, unchecked."""
        slot = self.lookup(digest)
        return slot >= 0 and self._table.mask[slot] == slots.whole_mask(self._table.length[slot])

    def check(self, slot: int, digest: bytes) -> bool:
        """Returns True if a slot holds what it should, reading all of it the first time. A bad one is dropped, with a warning."""
        if self._table.checked[slot]:
            return not self.dead[slot]
        return self._verified(slot, digest) is not None

    def data_position(self, slot: int) -> int:
        """Returns where the content begins in the data file."""
        return self._table.position[slot] + slots.header_bytes(self._table.length[slot])

    def mask(self, slot: int) -> int:
        """Returns the blocks that are present, a bit each."""
        return self._table.mask[slot]

    def length(self, slot: int) -> int:
        """Returns the bytes of the whole content."""
        return self._table.length[slot]

    def get(self, digest: bytes) -> bytes | None:
        """Returns the whole content, checked; None if it is absent or held in part."""
        slot = self.lookup(digest)
        if slot < 0 or not self.check(slot, digest):
            return None
        length = self.length(slot)
        if self.mask(slot) != slots.whole_mask(length):
            return None
        try:
            data = self._data.read(self.data_position(slot), length)
        except OSError as error:
            self._log_failure("read", error)
            return None
        if len(data) != length or self.dead[slot]:
            return None
        self.used[slot] = 1
        return data

    def put(self, digest: bytes, data: bytes | bytearray | memoryview, mask: int | None = None) -> int:
        """Stores content, or those blocks of it that `mask` has; returns its slot, or -1 if it cannot be stored.

        `data` has the whole length in any case, up to 16 MiB. Only content of up to 64 blocks can be held in part.
        """
        content = memoryview(data)
        if len(content) > slots.MAX_BYTES:
            return -1
        whole = slots.whole_mask(len(content))
        mask = whole if mask is None else mask & whole
        if mask != whole and slots.blocks_of(len(content)) > 64:
            raise ValueError(f"{len(content)} bytes cannot be held in part: a mask has 64 blocks")
        while True:
            held = self.lookup(digest)
            if held >= 0 and (old := self._to_join(held, digest, mask)) is not None:
                if self._table.mask[held] | mask == self._table.mask[held]:
                    return held
                content = slots.joined(old, content, mask)
                mask |= self._table.mask[held]
            slot = self._store(digest, content, mask, held)
            if slot is not None:
                return slot

    def pin(self, slot: int) -> None:
        """Keeps a slot from being evicted until `unpin`, once for each call; a slot that replaces it is not pinned."""
        with self._lock:
            self._table.pin(slot)

    def unpin(self, slot: int) -> None:
        """Takes back one `pin`."""
        with self._lock:
            self._table.unpin(slot)

    def discard(self, slot: int) -> None:
        """Drops a slot, pinned or not; -1 and one that is gone are fine."""
        if slot < 0:
            return
        with self._lock:
            if self.dead[slot]:
                return
            self._kill(slot)
        self._bury(slot)

    def scrub(self, limit_bytes: int) -> int:
        """Checks the next slots, up to `limit_bytes`; returns how many were damaged. Only one thread at a time may call it."""
        before = self._bad
        for _ in range(len(self._table.names)):
            if limit_bytes <= 0:
                break
            slot = self._scrubbed % len(self._table.names)
            self._scrubbed = slot + 1
            digest = self._table.names[slot]
            if not self.dead[slot]:
                limit_bytes -= self._table.size(slot)
                self._verified(slot, digest)
        return self._bad - before

    def status(self) -> dict[str, int]:
        """Returns counters since the start, and how much is held."""
        with self._lock:
            return {
                "cap_bytes": self.cap_bytes,
                "bytes": self._table.bytes,
                "pinned_bytes": self._table.pinned_bytes,
                "slots": len(self._table.index),
                "stored": self._stored,
                "evicted": self._evicted,
                "damaged": self._bad,
                "lost": self._lost,
                "failed_writes": self._failed,
                "replaced": self._replaced,
                "missing": int(self.missing),
            }

    def look_after(self) -> bool:
        """Begins anew, empty, where somebody has removed or replaced the directory; returns True if its files are others now.

        Where no directory can be made it goes on without, and the next call tries again.
        """
        if self._data.is_in_place():
            return False
        with self._room:
            return self._drain() and self._change_files()

    def clear(self) -> None:
        """Drops everything that is not pinned."""
        for slot in list(self._table.index.values()):
            if slot not in self._table.pins:
                self.discard(slot)

    def flush(self) -> None:
        """Waits until the journal knows all slots."""
        self._journal.flush()

    def close(self) -> None:
        """Writes the journal and gives the directory up; nobody may use the cache any more."""
        self._journal.close()
        self._data.close()

    def _load(self) -> None:
        gaps, lost, self._end = self._table.load(self._journal.load(), self._data.end())
        for position in lost:
            self._journal.remove(position)
        if lost:
            self._lost = len(lost)
            _log.warning("%d chunks and nodes that the cache %s had are lost", len(lost), self.directory)
        for start, end in gaps:
            self._data.punch(start, end - start)
        with self._room:
            self._make_room(0)

    def _store(self, digest: bytes, content: memoryview, mask: int, held: int) -> int | None:
        """Writes a slot in place of `held`. Returns -1 if that failed, None if another thread was faster."""
        length = len(content)
        head = slots.encode_header(digest, mask, content)
        size = len(head) + slots.present(length, mask) * BLOCK
        span = len(head) + slots.blocks_of(length) * BLOCK
        position = self._reserve(size, span)
        if position < 0:
            return -1
        try:
            self._data.write(position, head, content, mask)
        except OSError as error:
            self._log_failure("written", error)
            self.can_write = False
            with self._lock:
                self._failed += 1
            self._release(position, span, size)
            return -1
        self.can_write = True
        with self._lock:
            now = self._table.index.get(digest, -1)
            ours = now < 0 or now == held
            if ours:
                if now >= 0:
                    self._kill(now)
                slot = self._table.add(position, digest, length, mask)
                self._table.checked[slot] = 1
                self._stored += 1
                self._busy -= 1
                self._journal.add((position, digest, length, mask))
        if not ours:
            self._release(position, span, size)
            return None
        if now >= 0:
            self._bury(now)
        return slot

    def _reserve(self, size: int, span: int) -> int:
        """Makes room for a new slot that will allocate `size` bytes; returns its position, or -1 if there is no room."""
        with self._room:
            if self.missing:
                return -1
            if self._end + span > _MAX_POSITION and not self._begin_anew():
                return -1
            self._make_room(size)
            with self._lock:
                if self._table.bytes + size > self.cap_bytes:
                    return -1
                self._table.bytes += size
                self._busy += 1
                position = self._end
                self._end += span
                return position

    def _make_room(self, size: int) -> None:
        """Evicts until `size` bytes fit, or nothing where pinned slots leave too little. Holds _room."""
        with self._lock:
            if self._table.pinned_bytes + size > self.cap_bytes:
                return
            victims = self._table.victims(self._table.bytes + size - self.cap_bytes)
            for slot in victims:
                self._after_kill(slot)
            self._evicted += len(victims)
        for slot in victims:
            self._bury(slot)

    def _drain(self) -> bool:
        """Waits until no slot is being written or punched; returns True if that worked. Holds _room: none begins."""
        end = time.monotonic() + _DRAIN_SECONDS
        while self._busy and time.monotonic() < end:
            time.sleep(0.001)
        return not self._busy

    def _change_files(self) -> bool:
        """Drops everything, pinned or not, and begins anew in the directory as it is now. Holds _room, and nothing is busy."""
        victims = self._kill_all()
        if victims is None:
            return False
        was_missing, why = self.missing, ""
        try:
            self._data.begin_anew()
            self.missing = False
        except (HostError, OSError) as error:
            self.missing, why = True, str(error)
        self.can_write = not self.missing
        with self._lock:
            self._busy -= len(victims)
            self._table.bytes = self._end = 0
            self._replaced += not was_missing
        self._journal.begin_anew(delete=not self.missing)
        if not was_missing:
            _log.warning("the cache %s was removed or replaced while it was in use", self.directory)
        if self.missing and not was_missing:
            _log.warning("reads go on without a cache until there can be one: %s", why)
        elif not self.missing:
            _log.warning("the cache %s begins anew, empty", self.directory)
        return not (self.missing and was_missing)

    def _kill_all(self) -> list[int] | None:
        """Kills every slot, which is busy from then on; returns None, and kills none, while another is busy."""
        with self._lock:
            if self._busy:
                return None
            victims = list(self._table.index.values())
            for slot in victims:
                self._kill(slot)
            return victims

    def _begin_anew(self) -> bool:
        """Drops everything, pinned or not, so that positions begin at 0 again; returns True if that worked. Holds _room.

        Not while a slot is being written or punched: it would meet a new one in its place.
        """
        victims = self._kill_all()
        if victims is None:
            return False
        for slot in victims:
            self._bury(slot)
        self._data.empty()
        with self._lock:
            self._end = 0
        _log.info("the cache %s begins anew: its data file reached its greatest length", self.directory)
        return True

    def _kill(self, slot: int) -> None:
        """Marks a slot dead and forgets it, under the lock; it has to be buried afterwards, without the lock."""
        self._table.kill(slot)
        self._after_kill(slot)

    def _after_kill(self, slot: int) -> None:
        self._busy += 1
        self._journal.remove(self._table.position[slot])

    def _bury(self, slot: int) -> None:
        self._release(self._table.position[slot], self._table.span(slot), self._table.size(slot))

    def _release(self, position: int, span: int, size: int) -> None:
        """Gives the space of a slot back; where that fails it stays accounted for."""
        freed = self._data.punch(position, span)
        with self._lock:
            self._table.bytes -= size if freed else 0
            self._busy -= 1

    def _to_join(self, slot: int, digest: bytes, mask: int) -> bytes | None:
        """Returns a slot's content if `mask` adds to it, read and verified anew; else nothing; None if the slot is bad."""
        if self._table.mask[slot] | mask == self._table.mask[slot]:
            return b"" if self.check(slot, digest) else None
        return self._verified(slot, digest)

    def _verified(self, slot: int, digest: bytes) -> bytes | None:
        """Reads a slot and verifies it by its header and checksums; returns None, and drops it, if it is bad."""
        length = self._table.length[slot]
        try:
            raw = self._data.read(self._table.position[slot], self._table.span(slot))
        except OSError as error:
            self._log_failure("read", error)
            raw = None
        if self.dead[slot]:
            return None
        content = None if raw is None else slots.verified(raw, digest, length, self._table.mask[slot])
        if content is not None:
            self._table.checked[slot] = 1
            return content
        lost = raw is not None and not self._table.checked[slot] and slots.is_lost(raw, length)
        with self._lock:
            if self.dead[slot]:
                return None
            before = self._lost
            if lost:
                self._lost += 1
            else:
                self._bad += 1
            self._kill(slot)
        if not lost:
            _log.warning("the cache's copy of %s is damaged; it is dropped, and will be fetched again", digest.hex())
        elif not before:  # there may be hundreds
            _log.warning(
                "chunks and nodes that the cache %s had on record are lost: its last server was killed, or the host went "
                "down; they are fetched again",
                self.directory,
            )
        self._bury(slot)
        return None

    def _log_failure(self, done: str, error: OSError) -> None:
        """Logs a failure of the disk, but not more than one a minute."""
        now = self._clock()
        if now - self._logged >= _LOG_AGAIN_SECONDS:
            self._logged = now
            _log.warning("the cache %s cannot be %s: %s", self.directory, done, error.strerror)
