"""Blobs while they are made and sent: each is made once for all who ask meanwhile, and again once it was dropped."""

import os
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from blockmap.errors import BlockmapError, Corrupt, HostError

_PIECE_BYTES = 1 << 20


class SpooledBlob:
    """A blob in a file without a name, for several threads. Its last byte is sent only after all of it was found right."""

    def __init__(self, folder: Path, digest: bytes, size: int) -> None:
        self.size = size
        self.readers = 0
        """How many read it now; guarded by the spool's lock."""
        self._digest = digest
        with tempfile.TemporaryFile(dir=folder) as file:
            self._fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._fd)  # whoever reads it last may do so long after it was dropped
        self._changed = threading.Condition()  # guards what follows; never held across I/O
        self._ready = 0
        """Bytes that may be sent."""
        self._error: BlockmapError | None = None

    @property
    def is_settled(self) -> bool:
        """Returns True if nothing of it is still to be made."""
        with self._changed:
            return self._error is not None or self._ready == self.size

    @property
    def failed(self) -> bool:
        with self._changed:
            return self._error is not None

    def fill(self, pieces: Callable[[], Iterator[bytes]], is_other: Callable[[], None]) -> None:
        """Makes it, and calls `is_other` where it becomes another than it was; what goes wrong is raised to those who read it."""
        state, count = sha256(), 0
        try:
            for piece in pieces():
                state.update(piece)
                left = memoryview(piece)
                while left:
                    written = os.pwrite(self._fd, left, count)
                    left, count = left[written:], count + written
                self._set(max(min(count, self.size - 1), 0), None)
            if (count, state.digest()) != (self.size, self._digest):
                is_other()
                raise Corrupt(
                    f"sha256:{self._digest.hex()} cannot be made again here: what was made has another digest"
                )
            self._set(count, None)
        except BlockmapError as error:
            self._set(0, error)
        except OSError as error:
            self._set(0, HostError(f"cannot write a blob to the registry's folder: {error.strerror}"))

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yields a range as soon as it is made. Raises the error with which making it ended."""
        at = start
        while at < end:
            ready = self._wait_for(at)
            data = os.pread(self._fd, min(_PIECE_BYTES, min(ready, end) - at), at)
            at += len(data)
            yield data

    def _wait_for(self, at: int) -> int:
        """Returns how many bytes may be sent, once these are more than `at`."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready > at or self._error is not None)
            if self._error is not None:
                raise self._error
            return self._ready

    def _set(self, ready: int, error: BlockmapError | None) -> None:
        with self._changed:
            self._ready, self._error = ready, error
            self._changed.notify_all()


class Spool:
    """The blobs that are being sent, and the latest of those that were, up to a number of bytes."""

    def __init__(self, folder: Path, cap_bytes: int) -> None:
        self._folder, self._cap_bytes = folder, cap_bytes
        self._lock = threading.Lock()  # guards what follows; never held across I/O
        self._blobs: OrderedDict[bytes, SpooledBlob] = OrderedDict()

    def read(
        self, digest: bytes, size: int, fill: Callable[[SpooledBlob], None], start: int, end: int
    ) -> Iterator[bytes]:
        """Yields a range of a blob, which `fill` makes in a thread if it is not there."""
        blob = self._take(digest, size, fill)
        try:
            yield from blob.read(start, end)
        finally:
            self._give_back(blob)

    def _take(self, digest: bytes, size: int, fill: Callable[[SpooledBlob], None]) -> SpooledBlob:
        fresh = SpooledBlob(self._folder, digest, size)
        with self._lock:
            blob = self._blobs.get(digest)
            if blob is None or blob.failed:
                blob = self._blobs[digest] = fresh
            blob.readers += 1
            self._blobs.move_to_end(digest)
        if blob is fresh:
            threading.Thread(target=fill, args=(blob,), name="blob", daemon=True).start()
        return blob

    def _give_back(self, blob: SpooledBlob) -> None:
        with self._lock:
            blob.readers -= 1
            total = sum(each.size for each in self._blobs.values())
            for digest, each in list(self._blobs.items()):
                if total > self._cap_bytes and not each.readers and each.is_settled:
                    del self._blobs[digest]
                    total -= each.size
