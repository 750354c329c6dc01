"""Verified objects above a dumb store: what does not match its name never gets out.

Chunks and nodes are read by placement, which is advice; the bytes that arrive are checked against the digest asked for.
"""

from contextlib import suppress

from blockmap.errors import Corrupt, FormatError, NotFound
from blockmap.format import BLOCK, codec, filemap, keys, node, pack, version
from blockmap.format.chunker import MAX_BLOCKS
from blockmap.format.digest import Digest, chunk_digest, held_block_digests
from blockmap.format.node import Node, Placement
from blockmap.format.version import Version
from blockmap.store.base import Reader
from blockmap.store.concurrent import each

VERSION_ATTEMPTS = 8
"""A version's record has another number only where an earlier one was condemned."""


def open_chunk(name: Digest, place: Placement, stored: bytes | memoryview) -> bytes | memoryview:
    """The content of a chunk, from its stored frame, a part of which it may be; Corrupt.

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


def open_node(name: Digest, place: Placement, stored: bytes | memoryview) -> tuple[Node, bytes]:
    """A node and its frame, from its stored form; Corrupt."""
    try:
        if place.raw > node.MAX_NODE_BYTES:
            raise FormatError(f"{place.raw} bytes are too long for a node")
        frame = bytes(codec.decode(place.codec, stored, place.raw))
        return node.decode(frame, place.pack, name), frame
    except FormatError as error:
        raise Corrupt(f"node {name.hex()} in pack {place.pack.hex()} is damaged: {error}") from error


class Repository:
    """Reads verified objects from a store."""

    def __init__(self, store: Reader) -> None:
        self.store = store

    def stored(self, place: Placement) -> bytes | memoryview:
        """The bytes at a placement, not verified yet."""
        return self.store.get_range(keys.pack(place.pack), place.offset, place.offset + place.stored)

    def chunk(self, name: Digest, place: Placement) -> bytes | memoryview:
        return open_chunk(name, place, self.stored(place))

    def node(self, name: Digest, place: Placement | None) -> Node:
        if place is None:
            raise Corrupt(f"nothing says where node {name.hex()} is stored")
        return open_node(name, place, self.stored(place))[0]

    def version(self, name: Digest, number: int = 1) -> Version:
        """The record of a version; where it is not at its number, the few others that it may have are asked for at once."""
        try:
            return self.version_at(name, number)
        except (NotFound, Corrupt) as error:
            first = error

        def attempt(other: int) -> Version | None:
            with suppress(NotFound, Corrupt):
                return self.version_at(name, other)
            return None

        others = [other for other in range(1, VERSION_ATTEMPTS + 1) if other != number]
        found = next((record for record in each(attempt, others) if record is not None), None)
        if found is not None:
            return found
        raise first

    def version_at(self, name: Digest, number: int) -> Version:
        """The record of a version that has this number; NotFound, Corrupt."""
        try:
            return version.decode(self.store.get(keys.version(name, number)), name)
        except NotFound:
            raise NotFound(f"there is no version {name.hex()} in {self.store.url}") from None
        except FormatError as error:
            raise Corrupt(f"the record of version {name.hex()} is damaged: {error}") from error

    def file_map(self, root: Digest) -> list[filemap.File]:
        """The files of the volume `root`; NotFound where none was stored."""
        try:
            return list(filemap.decode(self.store.get(keys.filemap(root)), root))
        except FormatError as error:
            raise Corrupt(f"the file map of volume {root.hex()} is damaged: {error}") from error

    def pack_head(self, name: Digest) -> pack.PackHead:
        """What a pack says that it holds."""
        key = keys.pack(name)
        try:
            length = pack.head_length(bytes(self.store.get_range(key, 0, 32)))
            return pack.parse_head(bytes(self.store.get_range(key, 0, length)), name)
        except FormatError as error:
            raise Corrupt(f"pack {name.hex()} is damaged: {error}") from error
