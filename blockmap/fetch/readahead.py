"""Detects sequential readers, and says how far to read ahead of them. Pure."""

from collections import OrderedDict
from dataclasses import dataclass

FIRST_WINDOW_BYTES = 256 << 10
MAX_WINDOW_BYTES = 16 << 20
"""Bytes that are read ahead of a stream: the window doubles each time."""

_STREAMS = 8
"""Streams that are followed at once; the one that was quiet longest is forgotten first."""
_MIN_SLACK_BYTES = 64 << 10
_MAX_SLACK_BYTES = 4 << 20
_SLACK_READS = 4
"""How early or late a read may be, in reads of its length: clients send many at once, and some overtake others."""
_STEADY_BYTES = 256 << 10
"""Bytes in a row that make a stream: of programs and libraries, mapped in windows of 128 KiB, fewer are read in a row."""


@dataclass(slots=True)
class _Stream:
    position: int
    """Where the next read is expected, bytes."""
    ahead: int
    """Where the range that was read ahead ends, bytes."""
    window: int = FIRST_WINDOW_BYTES
    read: int = 0
    """Bytes that were read in a row."""


class ReadAhead:
    """Follows the streams of one volume.

    Only first touches are noted, as no others need fetching; a reader that reaches what was read ahead of it touches that
    for the first time, and so is seen to go on. Not safe to share: whoever owns it holds a lock.
    """

    def __init__(self) -> None:
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._made = 0

    def note(self, offset: int, length: int, may_begin: bool = True) -> tuple[int, int] | None:
        """Notes a read, which may be the first of a stream; returns the range [start, end) to fetch now, in bytes, if any."""
        end = offset + length
        found = self._find(offset, length)
        if found is None:
            if not may_begin:
                return None
            self._made += 1
            self._streams[self._made] = _Stream(end, end, read=length)
            if len(self._streams) > _STREAMS:
                self._streams.popitem(last=False)
            return None
        number, stream = found
        self._streams.move_to_end(number)
        stream.read += length
        stream.position = max(stream.position, end)
        if stream.read < _STEADY_BYTES or stream.ahead - stream.position > stream.window // 2:
            return None
        start = max(stream.ahead, stream.position)
        stream.ahead = stream.position + stream.window
        stream.window = min(stream.window * 2, MAX_WINDOW_BYTES)
        return start, stream.ahead

    def _find(self, offset: int, length: int) -> tuple[int, _Stream] | None:
        slack = min(max(_SLACK_READS * length, _MIN_SLACK_BYTES), _MAX_SLACK_BYTES)
        for number, stream in reversed(self._streams.items()):
            if abs(offset - stream.position) <= slack:
                return number, stream
        return None
