"""An import from end to end: source -> members -> ext4 blocks -> chunks -> packs -> tree -> version -> name.

The order of writes is packs, version, name; the name's entry is the only commit point. What fails before it takes its own
packs and version back where the store can delete, and leaves no more than garbage where it cannot.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import zstandard

from blockmap.errors import BlockmapError
from blockmap.filesystem.ext4.writer import WRITER, Ext4Writer
from blockmap.filesystem.member import ImageSource
from blockmap.format import BLOCK, codec, filemap, keys, layer, oci
from blockmap.format.digest import Digest
from blockmap.format.filemap import File
from blockmap.format.tree import Root
from blockmap.format.version import NodeRun, Version, WriterLayout
from blockmap.image.disk_image import DiskSource
from blockmap.learn.bundler import put_bundles
from blockmap.publish.catalogue import Catalogue, read_catalogue
from blockmap.publish.chunks import ChunkWriter, Counts
from blockmap.publish.local import LocalCatalogue, Numbered
from blockmap.publish.stages import Stages
from blockmap.publish.trees import Trees, store_trees
from blockmap.store.base import Pruner
from blockmap.store.names import NameLog
from blockmap.store.opening import Format
from blockmap.store.repository import Publication

THRESHOLD_BLOCKS = 32
"""Files from this size on are cut at their edges.

By `blockmap bench dedup` over 13 images of Debian (3.5 GB): none 1.878, 32 blocks 1.884 with 4 % more chunks, 16 blocks 1.889
with 8 %, 8 blocks 1.893 with 15 %, 2 blocks 1.900 with 50 %; the block-level limit is 2.03.
"""


@dataclass(frozen=True, slots=True)
class Summary:
    """What an import did."""

    name: str
    version: Digest
    root: Digest
    number: int
    """Of the name's entry; 0 where the name had this version already."""
    volume_bytes: int
    counts: Counts
    node_bytes: int
    seconds: float
    cpu: dict[str, float]
    """Processor seconds by stage."""


class LayerHeaders:
    """A layer's archive without its contents, compressed as it comes."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=codec.LEVEL).compressobj()
        self.packed = bytearray()
        self.raw = 0

    def keep(self, data: bytes) -> None:
        self.raw += len(data)
        self.packed += self._compressor.compress(data)

    def end(self) -> None:
        self.packed += self._compressor.flush()


@dataclass(frozen=True, slots=True)
class WrittenVolume:
    """A volume whose blocks have all gone to the sink."""

    size: int
    """Blocks."""
    layout: WriterLayout
    hidden: list[tuple[int, int]]
    files: list[File]
    headers: list[LayerHeaders]


class Importer:
    """Imports images into one store."""

    def __init__(
        self, store: Pruner, form: Format, warn: Callable[[str], None], local: LocalCatalogue | None = None
    ) -> None:
        self._store = store
        self._local = local or LocalCatalogue(None)
        self._parameters = form.chunker
        self._warn = warn

    def run(self, source: ImageSource | DiskSource, repo: str, tag: str, threshold: int = THRESHOLD_BLOCKS) -> Summary:
        """Imports `source` and moves the name to it; raises ImageError, StoreError, and leaves nothing new then."""
        began = time.monotonic()
        stages = Stages()
        publication = Publication(self._store)
        log = NameLog(self._store)
        made: tuple[Digest, int] | None = None
        try:
            with stages.time("known"):
                catalogue = read_catalogue(publication, log, self._local, self._warn)
            with ChunkWriter(publication.put_pack, catalogue.known.lookup, self._parameters, stages) as chunks:
                with stages.time("layers"):
                    if isinstance(source, DiskSource):
                        laid = write_disk(source, chunks)
                    else:
                        laid = write_image(source, chunks, threshold)
                chunks.finish()
                if not isinstance(source, DiskSource):
                    stages.add("decompress", sum(own.cpu_seconds for own in source.layers))
                with stages.time("tree"):
                    trees = store_trees(chunks, laid.size, laid.hidden, catalogue.known, publication)
            if trees.known:
                trees = replace(trees, run=self._run(publication, catalogue, trees.root))
                if publication.packs:
                    self._drop_unused(publication, chunks.counts)
            version = _version(source, trees, laid.layout)
            number = publication.put_version(version, self._standing(publication, catalogue, version.name))
            made = version.name, number
            manifest = None if version.manifest is None else hashlib.sha256(version.manifest).digest()
            entry = log.set(repo, tag, version.name, number, trees.root.placement, trees.run, manifest, "import")
        except BaseException:
            self._take_back(publication, log, repo, tag, made)
            raise
        try:
            self._put_derived(publication, source, laid, trees, version, number)
            put_bundles(self._store, repo, version.name, trees.root)
        except BlockmapError as error:
            self._warn(
                f"{repo}:{tag} is in the store; what speeds its use up is not, until it is imported again: {error}"
            )
        return Summary(
            f"{repo}:{tag}",
            version.name,
            trees.root.digest,
            entry.n if entry is not None else 0,
            laid.size * BLOCK,
            chunks.counts,
            trees.stored_bytes,
            time.monotonic() - began,
            stages.seconds(),
        )

    def _take_back(
        self, publication: Publication, log: NameLog, repo: str, tag: str, made: tuple[Digest, int] | None
    ) -> None:
        """Deletes what a failed import stored, unless the name's entry stands, or may stand, in spite of the failure."""
        try:
            if made is None or all((entry.version, entry.number) != made for entry in log.history(repo, tag)):
                publication.withdraw()
        except BlockmapError as error:
            self._warn(f"what the import stored was not taken back, and takes room in the store: {error}")

    def _drop_unused(self, publication: Publication, counts: Counts) -> None:
        """Chunks that were not found to be stored belong to trees that are: their packs are for nothing."""
        try:
            publication.withdraw()
            counts.new_chunks = counts.new_bytes = counts.stored_bytes = counts.packs = 0
        except BlockmapError as error:
            self._warn(f"packs that turned out to be of no use take room in the store: {error}")

    def _run(self, publication: Publication, catalogue: Catalogue, root: Root) -> NodeRun | None:
        """What an open of a tree that is stored already should read first, as a version that has it says."""
        for (name, number), (other, _) in catalogue.versions.items():
            if (other.digest, other.placement) == (root.digest, root.placement):
                with suppress(BlockmapError):
                    return publication.version(name, number).run
        return None

    def _standing(self, publication: Publication, catalogue: Catalogue, name: Digest) -> set[Numbered]:
        """The records of a version that a name stands for and that are whole, trees and all."""
        found = set()
        for (other, number), roots in catalogue.versions.items():
            if other != name or not all(map(catalogue.known.whole, roots)):
                continue
            try:
                publication.version(name, number)
                found.add((name, number))
            except BlockmapError as error:
                self._warn(f"version {name.hex()} is stored again: {error}")
        return found

    def _put_derived(
        self,
        publication: Publication,
        source: ImageSource | DiskSource,
        laid: WrittenVolume,
        trees: Trees,
        version: Version,
        number: int,
    ) -> None:
        """Stores what can be made again from the version: it follows the name, and is found missing harmlessly."""
        name = version.name
        for root, sample in trees.hooks:
            publication.put(keys.hooks(root), [sample])
        if isinstance(source, DiskSource):
            return
        publication.put(keys.filemap(version.root.digest), [filemap.encode(version.root.digest, laid.files)])
        for own, headers in zip(source.layers, laid.headers, strict=True):
            record = layer.LayerRecord(own.chain, name, number, headers.raw, bytes(headers.packed))
            publication.put(keys.layer(own.chain, 1), [layer.encode(record)])
        for document in (source.index, source.manifest, source.config):
            if document is not None:
                publication.put(keys.oci(hashlib.sha256(document).digest()), [oci.encode(name, number)])


def write_image(source: ImageSource, chunks: ChunkWriter, threshold: int) -> WrittenVolume:
    writer = Ext4Writer(chunks, threshold)
    headers = []
    for own in source.layers:
        kept = LayerHeaders()
        writer.layer(own.members(kept.keep))
        kept.end()
        headers.append(kept)
    volume = writer.finish(_uuid(source))
    files = [File(path, size, runs) for path, size, runs in volume.files if len(path) <= filemap.MAX_PATH]
    return WrittenVolume(volume.size_blocks, WriterLayout(WRITER, threshold), volume.hidden, files, headers)


def write_disk(source: DiskSource, chunks: ChunkWriter) -> WrittenVolume:
    """The bytes of a disk image, as they are: the last block is filled up with zeros."""
    rest, at = b"", 0
    for offset, data in source.extents():
        if offset != at:
            if rest:
                chunks.write((at - len(rest)) // BLOCK, rest.ljust(BLOCK, b"\0"))
            at = offset - offset % BLOCK
            rest = bytes(offset % BLOCK)
        joined = rest + data
        whole = len(joined) - len(joined) % BLOCK
        if whole:
            chunks.write((offset - len(rest)) // BLOCK, memoryview(joined)[:whole])
        rest, at = joined[whole:], offset + len(data)
    if rest:
        chunks.write((at - len(rest)) // BLOCK, rest.ljust(BLOCK, b"\0"))
    return WrittenVolume(max(1, -(-source.size // BLOCK)), WriterLayout(0, 0), [], [], [])


def _uuid(source: ImageSource) -> bytes:
    """The file system's UUID: a function of the layers' contents."""
    chain = source.layers[-1].chain if source.layers else bytes(32)
    return uuid.UUID(bytes=hashlib.sha256(b"blockmap ext4" + chain).digest()[:16], version=5).bytes


def _version(source: ImageSource | DiskSource, trees: Trees, layout: WriterLayout) -> Version:
    if isinstance(source, DiskSource):
        return Version(trees.root, trees.extra, layout, run=trees.run)
    try:
        created = json.loads(source.config).get("created")
    except (ValueError, AttributeError):
        created = None
    return Version(
        trees.root,
        trees.extra,
        layout,
        manifest=source.manifest,
        config=source.config,
        created=created if isinstance(created, str) else "",
        run=trees.run,
    )
