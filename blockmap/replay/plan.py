"""Plans a replay: what a bundle holds that the host lacks, which ranges bring it, and in which frames it comes. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from blockmap.format.bundle import BundleHead, NodeAt, Piece
from blockmap.format.digest import Digest
from blockmap.format.hint import BundleRef
from blockmap.replay.frames import BundleFrame
from blockmap.replay.range_buffer import Range, RangeBuffer, split_ranges

_FIRST_BYTES = 16 << 10
"""Bytes behind the head that come in the same range."""
_MOST_BYTES = 2 << 20
"""Bytes of the largest range. The 16 MiB that are asked for at once over a new link must be no more ranges than connections
are kept open: in ranges of 1 MiB, the last 2 MB of a bundle of 12 MB came a round trip later."""
_GAP_BYTES = 4 << 10
"""Frames with no more bytes between them come in one range."""


def head_range(ref: BundleRef) -> Range:
    """Returns the range that brings the head, and the first frames with it."""
    return 0, min(ref.table + _FIRST_BYTES, ref.length)


def all_ranges(ref: BundleRef) -> list[Range]:
    """Returns the ranges of a whole bundle, the head first, for a host that has nothing of it."""
    return list(split_ranges([(0, ref.length)], ref.table + _FIRST_BYTES, _FIRST_BYTES, _MOST_BYTES))


@dataclass(frozen=True, slots=True)
class Missing:
    """What a bundle holds that the host lacks."""

    head: BundleHead
    nodes: list[NodeAt]
    pieces: list[Piece]

    @property
    def frames(self) -> list[int]:
        """Returns the numbers of the frames that bring it, ascending."""
        return sorted({own.frame for own in self.nodes} | {own.frame for own in self.pieces})

    def ranges(self, have: int) -> list[Range]:
        """Returns the ranges that bring it: the first `have` bytes of the bundle, if any, are one of them."""
        found: list[Range] = []
        for number in self.frames:
            start, end = max(self.head.frames[number].offset, have), self.head.frames[number].end
            if start >= end:
                continue
            if found and start - found[-1][1] <= _GAP_BYTES:
                found[-1] = found[-1][0], end
            else:
                found.append((start, end))
        first = [(0, have)] if have else []
        return [*first, *split_ranges(found, _FIRST_BYTES, 2 * _FIRST_BYTES, _MOST_BYTES)]


def find_missing(
    head: BundleHead, has_blocks: Callable[[Digest, int], bool], has_node: Callable[[Digest], bool]
) -> Missing:
    """Returns what the host lacks: `has_blocks` says whether it has the blocks of a mask of a chunk."""
    pieces = [piece for piece in head.pieces if not has_blocks(piece.chunk, piece.mask)]
    return Missing(head, [own for own in head.nodes if not has_node(own.node)], pieces)


class ReplayPlan:
    """The frames that bring something new, and which of them to wait for; it does not change."""

    def __init__(self, missing: Missing, buffer: RangeBuffer) -> None:
        """A frame that the ranges of `buffer` do not bring, which the head of a damaged bundle may have, is left out."""
        self.head = missing.head
        listed = self.head.listed_frames
        frames: dict[int, BundleFrame] = {}
        for number in missing.frames:
            place = self.head.frames[number]
            if ranges := buffer.covering(place.offset, place.end):
                frames[number] = BundleFrame(number, ranges[-1], number < listed)
        for node in missing.nodes:
            if node.frame in frames:
                frames[node.frame].nodes.append(node)
                frames[node.frame].wanted = True  # a reader that misses anything looks for its leaf
        self._by_chunk: dict[bytes, list[tuple[BundleFrame, int]]] = {}
        for piece in missing.pieces:
            if piece.frame in frames:
                frames[piece.frame].pieces.append(piece)
                self._by_chunk.setdefault(piece.chunk, []).append((frames[piece.frame], piece.mask))
        self.frames = frames
        """By number, ascending."""
        first = min((piece.frame for piece in self.head.pieces), default=len(self.head.frames))
        self.tree = [frame for frame in frames.values() if frame.nodes and frame.number <= first]
        """The frames with nodes that come before all chunks."""

    @property
    def parts(self) -> dict[int, Range]:
        """Returns where the frames lie in the bundle, by number."""
        places = ((number, self.head.frames[number]) for number in self.frames)
        return {number: (place.offset, place.end) for number, place in places}

    def frames_with(self, chunk: bytes, mask: int) -> list[BundleFrame] | None:
        """Returns the frames that bring the blocks `mask` of a chunk; None where they do not bring all of them."""
        frames, left = [], mask
        for frame, brought in self._by_chunk.get(chunk, ()):
            if mask & brought:
                frames.append(frame)
                left &= ~brought
        return None if left else frames
