"""Placements become verified bytes here, and contents become frames: no other module knows where packs lie or how they are coded.

Demand, opening, replay, learning, publishing and checks go through it. What does not match its name never gets out.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import accumulate
from typing import Final, overload

from blockmap.errors import BlockmapError, Corrupt, FormatError, NotFound
from blockmap.format import BLOCK, bundle, codec, keys, node, pack
from blockmap.format.bundle import BundleHead
from blockmap.format.chunker import MAX_BLOCKS
from blockmap.format.digest import Digest, chunk_digest, held_block_digests
from blockmap.format.filemap import BodyStream
from blockmap.format.node import Node
from blockmap.format.pack import PackedFrame, PackHead
from blockmap.format.placement import Placement
from blockmap.format.version import NodeRun
from blockmap.store.concurrent import each
from blockmap.store.pack_logs import MovedLogs
from blockmap.store.plan import MAX_REQUEST_BYTES, Request, Wanted, chunk_at, node_at, requests

UNCOMPRESSED: Final = codec.RAW
"""The codec of a frame that is its content."""

NodeRef = tuple[Digest, Placement | None]
"""A node's name, and where it is stored, as far as that is known."""


class Packs:
    """Reads the packs of one store through `read`, which gives the bytes [start, end) of the object at a key.

    With `moved`, what is lost or damaged where it should be is read from where it was stored again.
    """

    def __init__(self, read: Callable[[str, int, int], bytes | memoryview], moved: MovedLogs | None = None) -> None:
        self._read = read
        self.moved = moved

    # --- from the store

    def stored(self, request: Request) -> memoryview:
        """Returns the bytes that a request spans, not verified yet. Raises Corrupt, NotFound or StoreUnavailable."""
        first = request[0].place
        return memoryview(self._read(pack_key(first.pack), first.offset, request[-1].end))

    def run(self, run: NodeRun) -> memoryview:
        """Returns the bytes of a run of nodes, not verified yet. Raises Corrupt, NotFound or StoreUnavailable."""
        return memoryview(self._read(pack_key(run.pack), run.start, run.end))

    def fetch(self, items: Iterable[Wanted]) -> dict[bytes, memoryview | BlockmapError]:
        """Returns the stored forms of `items` by their keys, not verified yet, or why they cannot be read.

        Reads few ranges, 16 at once.
        """

        def get(request: Request) -> list[tuple[bytes, memoryview | BlockmapError]]:
            try:
                data, start = self.stored(request), request[0].place.offset
            except BlockmapError as error:
                if len(request) > 1 and isinstance(error, Corrupt):  # a placement that is wrong spoils no other's
                    return [pair for item in request for pair in get([item])]
                return [(item.key, error) for item in request]
            return [(item.key, data[item.place.offset - start : item.end - start]) for item in request]

        distinct = {item.key: item for item in items}
        return dict(pair for pairs in each(get, requests(distinct.values(), MAX_REQUEST_BYTES)) for pair in pairs)

    def chunk(self, name: Digest, place: Placement) -> bytes | memoryview:
        """Returns the content of a chunk. Raises Corrupt, NotFound or StoreUnavailable."""
        item = chunk_at(name, place)
        return raised(self.chunks([item])[item.key])

    def chunks(self, items: Sequence[Wanted]) -> dict[bytes, bytes | memoryview | BlockmapError]:
        """Returns the contents of chunks by their keys, or why they cannot be read; reads few ranges, 16 at once."""
        stored = self.fetch(items)

        def opened(item: Wanted) -> bytes | memoryview | BlockmapError:
            try:
                return self.open_chunk(item.name, item.place, raised(stored[item.key]))
            except BlockmapError as error:
                return error

        found = {item.key: opened(item) for item in items}
        lost = [item for item in items if isinstance(found[item.key], (Corrupt, NotFound))]
        moved = each(self.elsewhere, lost)
        return found | {item.key: data for item, data in zip(lost, moved, strict=True) if data is not None}

    def elsewhere(self, item: Wanted, failed: Callable[[Wanted], object] = lambda item: None) -> bytes | None:
        """Returns what could not be read at its place from where it was stored again, or None where it was not.

        That is the content of a chunk, or the frame of a node as it could be at its place. `failed` is given what turns out
        lost or damaged where it was stored again. Raises StoreUnavailable.
        """

        def attempt(place: Placement) -> bytes | None:
            moved = item._replace(place=place)
            try:
                stored = self.stored([moved])
                if not item.is_node:
                    return bytes(self.open_chunk(item.name, place, stored))
                return node.encode(self.open_node(item.name, place, stored)[0])  # names the packs, its own too
            except (Corrupt, NotFound):
                failed(moved)
                return None

        return None if self.moved is None else self.moved.follow(item.name, item.place.pack, attempt)

    def nodes(
        self, refs: Sequence[NodeRef], keep: Callable[[Wanted, bytes], object] | None = None
    ) -> list[Node | BlockmapError]:
        """Returns nodes in the order of `refs`, or why they cannot be read; `keep` is given the frame of each."""
        items = {ref: node_at(ref[0], ref[1]) for ref in refs if ref[1] is not None}
        stored = self.fetch(items.values())

        def opened(ref: NodeRef) -> Node | BlockmapError:
            item = items.get(ref)
            if item is None:
                return Corrupt(f"nothing says where node {ref[0].hex()} is stored")
            try:
                try:
                    made, frame = self.open_node(item.name, item.place, raised(stored[item.key]))
                except (Corrupt, NotFound):
                    found = self.elsewhere(item)
                    if found is None:
                        raise
                    made, frame = node.decode(found, item.place.pack, item.name), found
            except BlockmapError as error:
                return error
            if keep is not None:
                keep(item, frame)
            return made

        found = {ref: opened(ref) for ref in dict.fromkeys(refs)}
        return [found[ref] for ref in refs]

    def head(self, name: Digest) -> PackHead:
        """Returns a pack's head, which lists its contents. Raises Corrupt, NotFound or StoreUnavailable."""
        key = pack_key(name)
        try:
            length = pack.head_length(bytes(self._read(key, 0, 32)))
            return pack.parse_head(bytes(self._read(key, 0, length)), name)
        except FormatError as error:
            raise Corrupt(f"pack {name.hex()} is damaged: {error}") from error

    # --- from bytes that have been read

    @staticmethod
    def open_chunk(name: Digest, place: Placement, stored: bytes | memoryview) -> bytes | memoryview:
        """Returns the content of a chunk from its stored frame, a part of which it may be. Raises Corrupt.

        Holds the interpreter's lock throughout, but for decompression.
        """
        try:
            if place.raw > MAX_BLOCKS * BLOCK:
                raise FormatError(f"{place.raw} bytes are too long for a chunk")
            data = codec.decode(place.codec, stored, place.raw)
        except FormatError as error:
            raise Corrupt(f"chunk {name.hex()} in pack {place.pack.hex()} is damaged: {error}") from error
        if chunk_digest(held_block_digests(data)) != name:
            raise Corrupt(f"chunk {name.hex()} in pack {place.pack.hex()} is damaged: its content has another digest")
        return data

    @staticmethod
    def open_node(name: Digest, place: Placement, stored: bytes | memoryview) -> tuple[Node, bytes]:
        """Returns a node and its frame from its stored form. Raises Corrupt."""
        try:
            if place.raw > node.MAX_NODE_BYTES:
                raise FormatError(f"{place.raw} bytes are too long for a node")
            frame = bytes(codec.decode(place.codec, stored, place.raw))
            return node.decode(frame, place.pack, name), frame
        except FormatError as error:
            raise Corrupt(f"node {name.hex()} in pack {place.pack.hex()} is damaged: {error}") from error

    @staticmethod
    def open_bundle(data: bytes | memoryview) -> BundleHead:
        """Decodes a bundle's head, which is all of `data`. Raises FormatError."""
        return bundle.decode_head(data, expand)

    @staticmethod
    def open_frame(head: BundleHead, number: int, stored: bytes | memoryview) -> bytes | memoryview:
        """Returns the content of a bundle's frame, whose parts the caller verifies (`bundle.is_good`). Raises FormatError."""
        frame = head.frames[number]
        return codec.decode(frame.codec, stored, frame.raw)


class Sealer:
    """Makes frames; not to be shared between threads."""

    def __init__(self) -> None:
        self._encoder = codec.Encoder()

    def seal(self, data: bytes | memoryview) -> tuple[int, bytes | memoryview]:
        """Returns the codec and the stored form, which is `data` itself where compression saves little."""
        return self._encoder.encode(data)

    def frames(self, contents: Collection[tuple[Digest, bytes]]) -> list[PackedFrame]:
        """Returns the frames of chunks or nodes, which hold no references to their contents."""
        coded = [self.seal(data) for _, data in contents]
        # zstd shrinks large allocations, and what lies between the small ones that stay is of no use to anyone:
        # without this copy, memory grew by 11 kB for each chunk of a pack. It also lets go of the contents themselves.
        packed = memoryview(b"".join(stored for _, stored in coded))
        ends = accumulate(len(stored) for _, stored in coded)
        return [
            PackedFrame(name, kind, packed[end - len(stored) : end], len(data))
            for (name, data), (kind, stored), end in zip(contents, coded, ends, strict=True)
        ]


def pack_key(name: Digest) -> str:
    """Returns where a store has a pack."""
    return keys.pack(name)


def compress(body: bytes) -> bytes:
    """Returns the body of a record (a profile, a reading list) as it is stored."""
    return codec.Encoder().compress(body)


def expand(stored: bytes | memoryview, raw: int) -> bytes:
    """Returns the body of a record, which has `raw` bytes. Raises FormatError."""
    return bytes(codec.decode(codec.ZSTD, stored, raw))


def expand_stream(stored: bytes | memoryview, raw: int) -> bytes:
    """Returns the body of `raw` bytes that came in pieces. Raises FormatError."""
    return codec.decode_stream(stored, raw)


def body_stream(raw: int = -1) -> BodyStream:
    """Returns what compresses a body that comes in pieces: a file map of `raw` bytes, or a layer's headers."""
    return codec.Encoder().stream(raw)


@overload
def raised(found: Node | BlockmapError) -> Node: ...  # type: ignore[overload-overlap]
@overload
def raised(found: memoryview | BlockmapError) -> memoryview: ...
@overload
def raised(found: bytes | memoryview | BlockmapError) -> bytes | memoryview: ...
def raised(found: Node | bytes | memoryview | BlockmapError) -> Node | bytes | memoryview:
    """Returns what was found, or raises the error that stands in its place."""
    if isinstance(found, BlockmapError):
        raise found
    return found
