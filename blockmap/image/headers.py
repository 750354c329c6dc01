"""Keeps what a layer's archive has beside file contents, so that the archive can be put together again."""

from dataclasses import dataclass

from blockmap.store.packs import body_stream

_PIECE_BYTES = 1 << 16
"""Bytes of headers that are compressed at once: to do it for each took a tenth of an import of small files."""
MAX_HEADERS = 64 << 20
"""Bytes of the headers of all layers as they are stored, which are in memory until then: 40 or so a file."""


@dataclass(frozen=True, slots=True)
class LayerHeaders:
    """A layer's archive without its contents."""

    raw: int
    packed: bytearray | None
    """One zstd frame; None if it takes too much memory."""


class HeadersKeeper:
    """Compresses a layer's archive without its contents as it comes, into `room` bytes at most."""

    def __init__(self, room: int) -> None:
        self._compressor = body_stream()
        self._room = room
        self._waiting = bytearray()
        self._packed = bytearray()
        self._raw = 0

    def keep(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) >= _PIECE_BYTES:
            self._pack()

    def _pack(self) -> None:
        self._raw += len(self._waiting)
        if len(self._packed) <= self._room:
            self._packed += self._compressor.compress(bytes(self._waiting))
        self._waiting.clear()

    def end(self) -> LayerHeaders:
        self._pack()
        self._packed += self._compressor.flush()
        return LayerHeaders(self._raw, self._packed if len(self._packed) <= self._room else None)
