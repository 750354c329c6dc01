"""What bundles have brought, in memory until the cache is given it.

A start reads what its bundle brings within moments, while the processors are busy with the program; what writing it to the
cache costs comes when the start has gone quiet. Whoever reads meanwhile gets it from here.
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
"""Beyond it, what comes is written at once."""
_QUIET_S = 1.0
_LONGEST_S = 10.0
"""What is read all the time has to be written too."""


class StagingArea:
    """Parts of chunks, all verified; safe to share between threads."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._changed = threading.Condition()  # guards what follows; readers look without it; never held across I/O
        self._here: dict[bytes, tuple[Piece, memoryview]] = {}
        self._bytes = 0
        self._writing = threading.Lock()  # held by whoever writes all that is here
        self._touched = False
        """Whether something came or was read since the thread last looked."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="landing", daemon=True)
        self._thread.start()

    def put(self, piece: Piece, data: memoryview) -> bool:
        """Has the blocks of a chunk from now on, or gives them to the cache; whether one of both worked."""
        with self._changed:
            found = self._here.get(piece.chunk)
            own, before = (piece, data), 0
            if found is not None:
                own, before = bundles.joined(*found, piece, data), len(found[1])
            fits = self._bytes + len(own[1]) - before <= _MOST_BYTES
            if fits:
                self._here[piece.chunk] = own
                self._bytes += len(own[1]) - before
                self._touched = True
                self._changed.notify_all()
        if fits:
            return True
        done = self._write(*own)  # all of it: one read may be of both parts
        if found is not None:
            self._leave(piece.chunk, found)
        return done

    @property
    def count(self) -> int:
        """Chunks that are here."""
        return len(self._here)

    def has(self, chunk: bytes, mask: int) -> bool:
        """Whether these blocks of a chunk are here, or in the cache, where they are not checked."""
        found = self._here.get(chunk)
        if found is not None and not mask & ~found[0].mask:
            return True
        slot = self._cache.lookup(chunk)
        return slot >= 0 and not mask & ~self._cache.mask(slot)

    def has_any(self, key: bytes) -> bool:
        """Whether something, if only in part, is here or in the cache, where it is not checked."""
        return key in self._here or self._cache.has(key)

    def has_all(self, key: bytes) -> bool:
        """Whether all of something is here, or in the cache, where it is not checked."""
        found = self._here.get(key)
        return (found is not None and found[0].mask == (1 << found[0].blocks) - 1) or self._cache.has_all(key)

    def read(self, chunk: bytes, start: int, mask: int, buf: memoryview) -> bool:
        """Fills `buf` from byte `start` of a chunk, of which it takes the blocks `mask`; whether they were here."""
        found = self._here.get(chunk)
        if found is None or mask & ~found[0].mask:
            return False
        block = start // BLOCK
        before = (found[0].mask & ((1 << block) - 1)).bit_count()
        at = before * BLOCK + start % BLOCK
        buf[:] = found[1][at : at + len(buf)]
        self._touched = True
        return True

    def flush(self) -> None:
        """Gives the cache all that is here."""
        with self._writing:
            while self._here:
                for chunk, own in list(self._here.items()):
                    self._write(*own)
                    self._leave(chunk, own)

    def close(self) -> None:
        """Gives the cache what is left; nothing may come any more."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._here or self._closed.is_set())
            if not self._here:
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

    def _leave(self, chunk: bytes, own: tuple[Piece, memoryview]) -> None:
        """The cache has been given it: forgets it, unless more of it has come."""
        with self._changed:
            if self._here.get(chunk) is own:
                del self._here[chunk]
                self._bytes -= len(own[1])

    def _write(self, piece: Piece, data: memoryview) -> bool:
        try:
            return self._cache.put(piece.chunk, bundles.spread(piece, data), piece.mask) >= 0
        except Exception as error:
            _log.warning("%s is not kept in the cache: %s", piece.chunk.hex(), error)
            return False
