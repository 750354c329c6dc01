"""Codecs of frames: 0 is raw, 1 is zstd at level 3, 16 to 31 are reserved for encryption."""

from typing import Final

import zstandard

from blockmap.errors import FormatError
from blockmap.format.filemap import BodyStream

RAW: Final = 0
ZSTD: Final = 1
LEVEL: Final = 3


class Encoder:
    """Compresses frames; not to be shared between threads."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True)

    def compress(self, data: bytes | memoryview) -> bytes:
        """Returns `data` as one zstd frame, which may be longer than `data`."""
        return self._zstd.compress(data)

    def stream(self, raw: int = -1) -> BodyStream:
        """Returns a compressor of pieces to one zstd frame, which says how long its content is only if it is known."""
        return self._zstd.compressobj(raw)

    def encode(self, data: bytes | memoryview) -> tuple[int, bytes | memoryview]:
        """Chooses a codec, and returns it with the stored form, which is `data` itself where compression saves less than 3 %."""
        packed = self.compress(data)
        return (ZSTD, packed) if len(packed) * 100 < len(data) * 97 else (RAW, data)


def decode(codec: int, stored: bytes | memoryview, raw: int) -> bytes | memoryview:
    """Returns the `raw` bytes that were encoded, which may be `stored` itself. Raises FormatError.

    Memory is bounded by `raw`, whatever `stored` claims.
    """
    if codec == RAW:
        if len(stored) != raw:
            raise FormatError(f"a frame of {len(stored)} bytes is not the {raw} bytes that were recorded")
        return stored
    if codec != ZSTD:
        raise FormatError(f"codec {codec} is not known to this release of blockmap: upgrade it")
    try:
        if zstandard.frame_content_size(stored) != raw:
            raise FormatError(f"a zstd frame does not hold the {raw} bytes that were recorded")
        data = zstandard.ZstdDecompressor().decompress(stored, max_output_size=raw, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"a zstd frame is damaged: {error}") from error
    if len(data) != raw:
        raise FormatError(f"a zstd frame gave {len(data)} bytes instead of {raw}")
    return data


def decode_stream(stored: bytes | memoryview, raw: int) -> bytes:
    """Returns the `raw` bytes that `Encoder.stream` was given, whose frame does not say how many. Raises FormatError.

    Memory is bounded by `raw`, whatever `stored` claims.
    """
    try:
        data = zstandard.ZstdDecompressor().stream_reader(stored).read(raw + 1)
    except zstandard.ZstdError as error:
        raise FormatError(f"a zstd frame is damaged: {error}") from error
    if len(data) != raw:
        raise FormatError(f"a zstd frame gave {len(data)} bytes instead of {raw}")
    return data
