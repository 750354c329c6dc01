"""Layers' archives made again: the headers that the import kept, with contents from the blocks where its writer put them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from blockmap.errors import Corrupt, ImageError, NotFound
from blockmap.export.contents import ContentReader
from blockmap.filesystem.ext4.writer import WRITER, Ext4Writer
from blockmap.filesystem.member import Member
from blockmap.format import BLOCK, keys, layer
from blockmap.format.filemap import FileRun
from blockmap.format.version import Version
from blockmap.image import tar
from blockmap.image.layer import config_chains
from blockmap.image.sparse import Segments
from blockmap.image.tolerance import Oddities, fit
from blockmap.store import limits
from blockmap.store.concurrent import each
from blockmap.store.numbered import newest_right, read_numbers
from blockmap.store.packs import expand_stream
from blockmap.store.repository import Repository

_PIECE_BYTES = 1 << 20


class StoredContent(NamedTuple):
    """The content of a file in an archive."""

    at: int
    """Bytes of headers before it."""
    runs: list[FileRun]
    """The blocks of the whole file, in its order."""
    size: int
    """Bytes of the file."""
    segments: Segments | None
    """What of it is in the archive; None for all of it."""


@dataclass(frozen=True, slots=True)
class LayerArchive:
    """A layer's archive: all of it but contents, and where these are."""

    headers: bytes
    contents: list[StoredContent]
    reader: ContentReader

    @property
    def size(self) -> int:
        """Returns the bytes of the archive."""
        stored = (
            content.size if content.segments is None else sum(length for _, length in content.segments)
            for content in self.contents
        )
        return len(self.headers) + sum(stored)

    def pieces(self) -> Iterator[bytes]:
        """Yields the archive, in pieces of a MiB or so. Raises Corrupt, NotFound, StoreUnavailable."""
        held: list[bytes | memoryview] = []
        count = 0
        for part in self._parts():
            held.append(part)
            count += len(part)
            if count >= _PIECE_BYTES:
                yield b"".join(held)
                held, count = [], 0
        yield b"".join(held)

    def _parts(self) -> Iterator[bytes | memoryview]:
        blocks = _Blocks(self.reader.read(run for content in self.contents for run in content.runs))
        headers = memoryview(self.headers)
        at = 0
        for content in self.contents:
            yield headers[at : content.at]
            at = content.at
            done = 0
            for start, length in [(0, content.size)] if content.segments is None else content.segments:
                blocks.skip(start - done)
                yield from blocks.take(length)
                done = start + length
            blocks.skip(-(-content.size // BLOCK) * BLOCK - done)
        yield headers[at:]


class _Blocks:
    """Takes bytes from pieces that come one behind the other."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")

    def take(self, count: int) -> Iterator[memoryview]:
        while count:
            if not self._piece:
                self._piece = next(self._pieces)
            part, self._piece = self._piece[:count], self._piece[count:]
            count -= len(part)
            yield part

    def skip(self, count: int) -> None:
        for _ in self.take(count):
            pass


class _NoBlocks:
    """Stands for the blocks of a volume that nobody writes."""

    def write(self, block: int, data: bytes | bytearray | memoryview) -> None:
        raise AssertionError(f"block {block} of a volume was written that is only planned")

    def cut(self) -> None:
        """Does nothing: there are no chunks."""


def stored_archives(repository: Repository, version: Version) -> list[LayerArchive]:
    """Returns the archives of the layers that a version was imported from.

    What the importer's writer did is done again with the headers alone, so that it says where contents are. Raises ImageError,
    NotFound or Corrupt where something of them is missing or damaged.
    """
    if version.layout.writer != WRITER:
        raise ImageError(
            f"version {version.name.hex()} was laid out by writer {version.layout.writer}, and this release knows {WRITER}: "
            "import the image again, or export it with the release that imported it"
        )
    reader = ContentReader(repository, [version.root, version.extra])
    writer = Ext4Writer(_NoBlocks(), version.layout.threshold)
    found = []
    chains = list(enumerate(config_chains(version.config), start=1))
    kept = each(lambda layer: _headers(repository, layer[1], layer[0]), chains)
    for (number, chain), headers in zip(chains, kept, strict=True):
        contents: list[StoredContent] = []
        parts: list[tar.SkeletonPart] = []
        try:
            for runs in writer.locate(_members(headers, parts)):
                part = parts.pop()
                if runs:
                    contents.append(StoredContent(part.at, runs, part.member.size, part.segments))
        except ImageError as error:
            raise Corrupt(f"the headers of layer {number} (layers/{chain.hex()}) are damaged: {error}") from error
        found.append(LayerArchive(headers, contents, reader))
    return found


def _members(headers: bytes, parts: list[tar.SkeletonPart]) -> Iterator[Member]:
    """Yields members as the importer had them, and puts each to `parts`."""
    odd = Oddities("", lambda text: None)
    for part in tar.skeleton(headers):
        parts.append(part)
        yield fit(part.member, odd)


def _headers(repository: Repository, chain: bytes, number: int) -> bytes:
    key = partial(keys.layer, chain)
    numbered = read_numbers(repository.store, key, limits.LAYER)
    found = newest_right(
        repository.store,
        key,
        limits.LAYER,
        lambda data: layer.decode(data, chain).headers(expand_stream),
        numbered,
    )
    if found is None:
        raise NotFound(
            f"the headers of layer {number} are not in {repository.store.url} (layers/{chain.hex()}), and without them it cannot "
            "be given back: import the image again, which stores them"
        )
    return found
