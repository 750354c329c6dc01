"""Stages what bundles bring in memory, and writes it to the cache when the start has gone quiet (write-back).

A start reads what its bundle brings within moments, while the processors are busy with its program. Readers get it from the
staging area until it is in the cache.
"""

import logging
import threading
import time

from blockmap.cache.cache import Cache
from blockmap.format import BLOCK
from blockmap.format import bundle as bundles
from blockmap.format.bundle import Piece

_log = logging.getLogger(__name__)

_MOST_BYTES = 128 << 20
"""Bytes that are staged at most; what comes beyond is written at once."""
_QUIET_S = 1.0
"""Seconds without a read, or anything new, after which the start is quiet."""
_LONGEST_S = 10.0
"""Seconds after which all is written, however much is read."""


class StagingArea:
    """Holds verified parts of chunks until they are in the cache; safe to share between threads."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._changed = threading.Condition()  # guards what follows; readers look without it; never held across I/O
        self._staged: dict[bytes, tuple[Piece, memoryview]] = {}
        self._bytes = 0
        self._writing = threading.Lock()  # held by whoever writes all that is staged; taken before _changed
        self._touched = False
        """True if anything came or was read since the thread last looked."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="staging", daemon=True)
        self._thread.start()

    def put(self, piece: Piece, data: memoryview) -> bool:
        """Stages some blocks of a chunk, or writes them to the cache if there is no room; returns True if one of both worked."""
        with self._changed:
            found = self._staged.get(piece.chunk)
            own, before = (piece, data), 0
            if found is not None:
                own, before = bundles.joined(*found, piece, data), len(found[1])
            fits = self._bytes + len(own[1]) - before <= _MOST_BYTES
            if fits:
                self._staged[piece.chunk] = own
                self._bytes += len(own[1]) - before
                self._touched = True
                self._changed.notify_all()
        if fits:
            return True
        done = self._write(*own)  # with what was staged before: one read may need both parts
        if found is not None:
            self._forget(piece.chunk, found)
        return done

    @property
    def count(self) -> int:
        """Returns how many chunks are staged."""
        return len(self._staged)

    def has(self, chunk: bytes, mask: int) -> bool:
        """Returns True if these blocks of a chunk are staged or cached, unchecked."""
        found = self._staged.get(chunk)
        if found is not None and not mask & ~found[0].mask:
            return True
        slot = self._cache.lookup(chunk)
        return slot >= 0 and not mask & ~self._cache.mask(slot)

    def has_any(self, key: bytes) -> bool:
        """Returns True if some of a chunk or node is staged or cached, unchecked."""
        return key in self._staged or self._cache.has(key)

    def has_all(self, key: bytes) -> bool:
        """Returns True if all of a chunk or node is staged or cached, unchecked."""
        found = self._staged.get(key)
        return (found is not None and found[0].mask == (1 << found[0].blocks) - 1) or self._cache.has_all(key)

    def read(self, chunk: bytes, start: int, mask: int, buf: memoryview) -> bool:
        """Fills `buf` from byte `start` of a chunk, which takes the blocks `mask`; returns True if all of them are staged."""
        found = self._staged.get(chunk)
        if found is None or mask & ~found[0].mask:
            return False
        block = start // BLOCK
        before = (found[0].mask & ((1 << block) - 1)).bit_count()
        at = before * BLOCK + start % BLOCK
        buf[:] = found[1][at : at + len(buf)]
        self._touched = True
        return True

    def flush(self) -> None:
        """Writes all that is staged to the cache."""
        with self._writing:
            while self._staged:
                for chunk, own in list(self._staged.items()):
                    self._write(*own)
                    self._forget(chunk, own)

    def close(self) -> None:
        """Writes what is left to the cache, and ends the thread; nothing may be put any more."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._staged or self._closed.is_set())
            if not self._staged:
                return
            self._await_quiet()
            self.flush()

    def _await_quiet(self) -> None:
        end = time.monotonic() + _LONGEST_S
        self._touched = True
        while self._touched and time.monotonic() < end:
            self._touched = False
            if self._closed.wait(_QUIET_S):
                return

    def _forget(self, chunk: bytes, own: tuple[Piece, memoryview]) -> None:
        """Forgets a chunk that the cache has been given, unless more of it was staged meanwhile."""
        with self._changed:
            if self._staged.get(chunk) is own:
                del self._staged[chunk]
                self._bytes -= len(own[1])

    def _write(self, piece: Piece, data: memoryview) -> bool:
        try:
            return self._cache.put(piece.chunk, bundles.spread(piece, data), piece.mask) >= 0
        except Exception as error:
            _log.warning("chunk %s cannot be written to the cache: %s", piece.chunk.hex(), error)
            return False
