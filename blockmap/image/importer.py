"""An import from end to end: source -> members -> ext4 blocks -> publication.

What can be made again from the version follows its name: file map, headers of layers, OCI digests, bundles of profiles.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from blockmap.errors import Corrupt, ImageError
from blockmap.filesystem.ext4.writer import WRITER, Ext4Writer
from blockmap.filesystem.member import ImageSource
from blockmap.format import BLOCK, filemap, keys, layer, oci
from blockmap.format.digest import Digest
from blockmap.format.filemap import FileRun
from blockmap.format.oci import DocumentRecord
from blockmap.format.version import Version, WriterLayout
from blockmap.image.disk_image import DiskSource
from blockmap.image.headers import MAX_HEADERS, HeadersKeeper, LayerHeaders
from blockmap.image.kept_blobs import find_recipes, keep_blobs, put_recipes
from blockmap.image.layer import chain_ids
from blockmap.image.oci import config_diff_ids
from blockmap.learn.bundler import put_bundles
from blockmap.publish.catalogue import read_catalogue
from blockmap.publish.chunks import ChunkWriter, Counts
from blockmap.publish.derived import put_derived
from blockmap.publish.local import LocalCatalogue
from blockmap.publish.publication import Derive, Publication, Published
from blockmap.publish.stages import Stages
from blockmap.publish.trees import Trees
from blockmap.store import limits
from blockmap.store.base import Pruner
from blockmap.store.concurrent import each
from blockmap.store.documents import check_document
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.opening import Format
from blockmap.store.packs import body_stream, expand, expand_stream
from blockmap.store.repository import Repository
from blockmap.store.signing import Signer

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
    """The number of the name's entry; 0 where the name had this version already."""
    volume_bytes: int
    counts: Counts
    node_bytes: int
    seconds: float
    cpu: dict[str, float]
    """Processor seconds by stage."""
    kept_bytes: int = 0
    """Bytes of the layers' blobs that were stored as they are."""


@dataclass(frozen=True, slots=True)
class WrittenVolume:
    """A volume whose blocks have all gone to the sink."""

    size: int
    """Blocks of the volume."""
    layout: WriterLayout
    hidden: list[tuple[int, int]]
    files: Iterable[tuple[bytes, int, list[FileRun]]]
    """Path, bytes and runs of every file, sorted by path."""
    headers: list[LayerHeaders]


class Importer:
    """Imports images into one store."""

    def __init__(
        self,
        store: Pruner,
        form: Format,
        warn: Callable[[str], None],
        local: LocalCatalogue | None = None,
        signer: Signer | None = None,
    ) -> None:
        self._store = store
        self._signer = signer
        self._local = local or LocalCatalogue(None)
        self._form = form
        self._warn = warn

    def run(
        self,
        source: ImageSource | DiskSource,
        repo: str,
        tag: str,
        threshold: int = THRESHOLD_BLOCKS,
        keeps_blobs: bool = False,
    ) -> Summary:
        """Imports `source` and moves the name to it; raises ImageError, StoreError, and leaves nothing new then.

        With `keeps_blobs`, the layers' blobs are stored as well, after the name was moved.
        """
        began = time.monotonic()
        stages = Stages()
        names = NameLog(self._store, signer=self._signer)
        with stages.time("known"):
            catalogue = read_catalogue(self._store, names, self._local, self._warn)
        with stages.time("recipes"):
            recipes = {} if isinstance(source, DiskSource) else find_recipes(self._store, source)
        with Publication(self._store, self._form, names, catalogue, self._warn) as publication:
            laid, counts, trees = _store_trees(source, publication, stages, threshold)
            version = _version(source, trees, laid.layout)
            derived: list[Derive] = [
                lambda published: self._put_records(source, laid, version, published),
                lambda published: put_bundles(self._store, repo, published.version, published.root, self._warn),
                lambda published: put_recipes(self._store, recipes),
            ]
            published = publication.publish(NameTarget(repo, tag), version, "import", derived)
        kept = keep_blobs(self._store, source) if keeps_blobs and not isinstance(source, DiskSource) else 0
        return Summary(
            f"{repo}:{tag}",
            published.version,
            trees.root.digest,
            published.entry.n if published.entry is not None else 0,
            laid.size * BLOCK,
            counts,
            trees.stored_bytes,
            time.monotonic() - began,
            stages.seconds(),
            kept,
        )

    def heal(self, source: ImageSource | DiskSource) -> None:
        """Stores again what packs of the store have lost of `source`, for all versions that need it; moves no name."""
        names = NameLog(self._store)
        catalogue = read_catalogue(self._store, names, self._local, self._warn)
        with Publication(self._store, self._form, names, catalogue, self._warn) as publication:
            _store_trees(source, publication, Stages(), THRESHOLD_BLOCKS)

    def _put_records(
        self, source: ImageSource | DiskSource, laid: WrittenVolume, version: Version, published: Published
    ) -> None:
        """Stores the volume's file map, the layers' headers, and what leads from OCI digests to the version."""
        if isinstance(source, DiskSource):
            return
        name, number = published.version, published.number
        root, repository = version.root.digest, Repository(self._store)
        files = filemap.encode(root, laid.files, body_stream)

        def lists_them(data: bytes) -> bool:
            return data == files or filemap.body(data, root, expand) == filemap.body(files, root, expand)

        puts = [
            partial(
                put_derived, self._store, self._warn, partial(keys.filemap, root), limits.FILE_MAP, files, lists_them
            )
        ]
        for own, headers in zip(source.layers, laid.headers, strict=True):
            if headers.packed is None:
                self._warn(
                    f"layer {own.chain.hex()}: its headers are not kept beside the version: those of the image take more than "
                    f"{MAX_HEADERS >> 20} MiB"
                )
                continue
            record = layer.LayerRecord(own.chain, name, number, headers.raw, headers.packed)
            puts.append(partial(self._put_layer, repository, record))
        for document in (source.index, source.manifest, source.config):
            leads = DocumentRecord(name, number, document if document is source.index else None)
            puts.append(partial(self._put_document, repository, document, leads, version))
        each(lambda put_one: put_one(), puts)

    def _put_layer(self, repository: Repository, record: layer.LayerRecord) -> None:
        """Stores the headers of a layer, unless they are there, with a version that has the layer."""

        def is_right(data: bytes) -> bool:
            found = layer.decode(data, record.chain)
            if found.version != record.version:
                _check_layer(repository.version(found.version, found.number), record.chain)
            same = found.packed == record.packed
            return same or found.headers(expand_stream) == record.headers(expand_stream)

        put_derived(
            self._store, self._warn, partial(keys.layer, record.chain), limits.LAYER, layer.encode(record), is_right
        )

    def _put_document(
        self, repository: Repository, document: bytes | None, record: DocumentRecord, version: Version
    ) -> None:
        """Stores what leads from a document's digest to the version, unless it leads to one with that document already."""
        if document is None:
            return
        digest = hashlib.sha256(document).digest()
        if not record.fits(digest, version):
            return  # an index of indexes, from which nobody could tell that the manifest belongs to it

        def is_right(data: bytes) -> bool:
            check_document(repository, digest, data)
            return True

        put_derived(self._store, self._warn, partial(keys.oci, digest), limits.OCI, oci.encode(record), is_right)


def _check_layer(version: Version, chain: bytes) -> None:
    """Raises Corrupt for a version whose configuration does not list the stack of layers `chain`."""
    try:
        if version.config is not None and chain in chain_ids(config_diff_ids(version.config)):
            return
    except ImageError:
        pass
    raise Corrupt(f"version {version.name.hex()} has no such stack of layers")


def _store_trees(
    source: ImageSource | DiskSource, publication: Publication, stages: Stages, threshold: int
) -> tuple[WrittenVolume, Counts, Trees]:
    """Writes the volume of a source, and stores its trees."""
    with publication.chunk_writer(stages) as chunks:
        with stages.time("layers"):
            if isinstance(source, DiskSource):
                laid = write_disk(source, chunks)
            else:
                laid = write_image(source, chunks, threshold)
        chunks.finish()
        if not isinstance(source, DiskSource):
            stages.add("decompress", sum(own.cpu_seconds for own in source.layers))
        with stages.time("tree"):
            trees = publication.assemble(chunks, laid.size, laid.hidden)
    return laid, chunks.counts, trees


def write_image(source: ImageSource, chunks: ChunkWriter, threshold: int) -> WrittenVolume:
    writer = Ext4Writer(chunks, threshold)
    headers: list[LayerHeaders] = []
    for own in source.layers:
        keeper = HeadersKeeper(MAX_HEADERS - sum(len(kept.packed) for kept in headers if kept.packed is not None))
        writer.layer(own.members(keeper.keep))
        headers.append(keeper.end())
    volume = writer.finish(_uuid(source))
    return WrittenVolume(volume.size_blocks, WriterLayout(WRITER, threshold), volume.hidden, volume.files, headers)


def write_disk(source: DiskSource, chunks: ChunkWriter) -> WrittenVolume:
    """Writes the bytes of a disk image as they are; the last block is filled up with zeros."""
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
    """Returns the file system's UUID, a function of the layers' contents."""
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
