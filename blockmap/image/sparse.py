"""Reads the maps of sparse members: GNU's old form, and those that GNU tar writes with pax headers (0.0, 0.1 and 1.0).

A map lists the segments of a file that are stored, one behind the other; what lies between them is zeros (GNU tar's manual,
"Storing Sparse Files"). It is among the headers, so that headers and stored segments together are the archive.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

from blockmap.errors import ImageError
from blockmap.image.pax import BLOCK, SPARSE, decimal, number

_OLD_FIRST, _OLD_MORE, _OLD_SIZE = 386, 482, 483
"""Offsets in a header of GNU's old form: four segments, whether a block of more follows, the size of the file."""
_OLD_ENTRY = 24
_ZEROS = bytes(1 << 20)
HOLE_BYTES = 1 << 20
"""Holes that archives made here leave out. Smaller ones are zeros: hashing is cheap, and they come and go as files are copied."""
_MAX_SEGMENTS = 20_000
"""Segments of a sparse member: a longer map would be refused when it is read."""

Segments = list[tuple[int, int]]
"""Offset and bytes of each segment that is stored, ascending."""


def old_map(block: bytes, more: Callable[[], bytes]) -> tuple[int, Segments]:
    """Returns the size of a file and its segments from a header of GNU's old form; `more` takes the next block."""
    size = number(block[_OLD_SIZE : _OLD_SIZE + 12], "sparse size")
    fields, again = block[_OLD_FIRST:_OLD_MORE], block[_OLD_MORE]
    numbers: list[int] = []
    while True:
        for at in range(0, len(fields), _OLD_ENTRY):
            entry = fields[at : at + _OLD_ENTRY]
            if entry[0]:
                numbers += (number(entry[:12], "sparse map"), number(entry[12:], "sparse map"))
        if not again:
            return size, list(zip(numbers[::2], numbers[1::2], strict=True))
        block = more()
        fields, again = block[: 21 * _OLD_ENTRY], block[21 * _OLD_ENTRY]


def pax_map(extended: dict[bytes, bytes], more: Callable[[], bytes]) -> tuple[int, Segments] | None:
    """Returns the size of a file and its segments as pax headers describe them, None if it is not sparse.

    `more` takes the next block of the member's content, with which a map of version 1.0 begins. Raises ImageError.
    """
    version = extended.get(SPARSE + b"major", b"0"), extended.get(SPARSE + b"minor", b"0")
    if version == (b"1", b"0"):
        size = extended.get(SPARSE + b"realsize", b"")
        text, lines, wanted = bytearray(), 0, 1
        while lines < wanted:
            block = more()
            lines += block.count(b"\n")
            text += block
            if wanted == 1 and lines:
                wanted += 2 * max(0, decimal(bytes(text[: text.index(b"\n")])))
        numbers = bytes(text).split(b"\n")[1:wanted]
    elif version[0] == b"0" and SPARSE + b"map" in extended:
        size = extended.get(SPARSE + b"size") or extended.get(SPARSE + b"realsize", b"")
        numbers = extended[SPARSE + b"map"].split(b",") if extended[SPARSE + b"map"] else []
    elif version[0] == b"0":
        return None
    else:
        raise ImageError(f"a member is sparse in GNU's version {b'.'.join(version)!r}: up to 1.0 is supported")
    found = [decimal(each) for each in numbers]
    if len(found) % 2:
        raise ImageError("a sparse member's map ends in the middle of a segment: the archive is damaged")
    return decimal(size), list(zip(found[::2], found[1::2], strict=True))


def check(size: int, stored: int, segments: Segments) -> None:
    """Raises ImageError unless the segments are ascending, within the file, and as long together as what is stored."""
    bounds = [0, *(bound for start, length in segments for bound in (start, start + length)), size]
    if any(before > behind for before, behind in pairwise(bounds)) or sum(length for _, length in segments) != stored:
        raise ImageError("a sparse member's map does not fit its content: the archive is damaged")


def expand(stored: Iterator[bytes], size: int, segments: Segments) -> Iterator[bytes]:
    """Yields the contents of a file of `size` bytes from its stored segments."""
    at, rest = 0, b""
    for start, length in segments:
        yield from zeros(start - at)
        at = start + length
        while length:
            rest = rest or next(stored, b"")
            if not rest:
                return  # another member is being read
            data, rest = rest[:length], rest[length:]
            length -= len(data)
            yield data
    yield from zeros(size - at)


def zeros(count: int) -> Iterator[bytes]:
    """Yields that many zeros, in pieces that share their memory."""
    for _ in range(count // len(_ZEROS)):
        yield _ZEROS
    if rest := count % len(_ZEROS):
        yield _ZEROS[:rest]


def encode_map(segments: Segments) -> bytes:
    """Returns the map of version 1.0, padded to whole blocks."""
    text = b"%d\n" % len(segments) + b"".join(b"%d\n%d\n" % segment for segment in segments)
    return text + bytes(-len(text) % BLOCK)


def stored_segments(data: Segments, size: int) -> Segments | None:
    """Returns the segments that an archive made here has of a file, given those that are no holes; None for the file whole."""
    found: Segments = []
    at = 0
    for start, length in [*data, (size, 0)]:
        if start - at >= HOLE_BYTES or not found:
            begin = start if start - at >= HOLE_BYTES else at
            found.append((begin, start + length - begin))
        else:
            found[-1] = (found[-1][0], start + length - found[-1][0])
        at = start + length
    found = [segment for segment in found if segment[1]]
    return None if found == [(0, size)] or not size or len(found) > _MAX_SEGMENTS else found
