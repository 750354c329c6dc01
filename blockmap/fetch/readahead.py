"""Which readers read on and on, and how far to read ahead of them: pure."""

from collections import OrderedDict
from dataclasses import dataclass

FIRST_WINDOW_BYTES = 256 << 10
MAX_WINDOW_BYTES = 16 << 20

_STREAMS = 8
_MIN_SLACK_BYTES = 64 << 10
_MAX_SLACK_BYTES = 4 << 20
_SLACK_READS = 4
"""By how many reads of its length one may be early or late: clients send many at once, and some overtake others."""
_STEADY_BYTES = 256 << 10
"""In a row before they count as a stream: programs and their libraries are mapped in windows of 128 KiB."""


@dataclass(slots=True)
class _Stream:
    position: int
    """Where the next read is expected, bytes."""
    ahead: int
    """What lies before was asked for."""
    window: int = FIRST_WINDOW_BYTES
    read: int = 0
    """Bytes in a row."""


class ReadAhead:
    """The streams of one volume. It is told of first touches only, as others are no matter of fetching: a reader that
    comes to what was brought ahead touches it for the first time, and so is seen to get on.

    Not safe to share: whoever owns it holds a lock.
    """

    def __init__(self) -> None:
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._made = 0

    def note(self, offset: int, length: int, may_begin: bool = True) -> tuple[int, int] | None:
        """A read, which may be the first of a stream; the range [start, end) to bring now, if any, in bytes."""
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
