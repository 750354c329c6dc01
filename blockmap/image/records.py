"""Stores beside a version what can be made again from the image: file map, headers of layers, what leads from OCI digests to it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from blockmap.errors import Corrupt
from blockmap.filesystem.member import ImageSource
from blockmap.format import filemap, keys, layer, oci
from blockmap.format.filemap import FileRun
from blockmap.format.oci import DocumentRecord
from blockmap.format.version import Version
from blockmap.image.headers import MAX_HEADERS, LayerHeaders
from blockmap.image.layer import config_chains
from blockmap.publish.derived import put_derived
from blockmap.publish.publication import Published
from blockmap.store import limits
from blockmap.store.base import Pruner
from blockmap.store.concurrent import each
from blockmap.store.documents import check_document
from blockmap.store.packs import body_stream, expand, expand_stream
from blockmap.store.repository import Repository

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class VersionRecords:
    """Writes the records of one version."""

    store: Pruner
    warn: Warn
    source: ImageSource
    version: Version
    published: Published

    def put_all(self, files: Iterable[tuple[bytes, int, list[FileRun]]], headers: Sequence[LayerHeaders]) -> None:
        """Stores the volume's file map, the layers' headers, and what leads from OCI digests to the version."""
        root = self.version.root.digest
        made = filemap.encode(root, files, body_stream)

        def lists_them(data: bytes) -> bool:
            return data == made or filemap.body(data, root, expand) == filemap.body(made, root, expand)

        key = partial(keys.filemap, root)
        puts: list[Callable[[], None]] = [
            partial(put_derived, self.store, self.warn, key, limits.FILE_MAP, made, lists_them)
        ]
        for own, kept in zip(self.source.layers, headers, strict=True):
            if kept.packed is None:
                self.warn(
                    f"layer {own.chain.hex()}: its headers are not kept beside the version: those of the image take more than "
                    f"{MAX_HEADERS >> 20} MiB"
                )
                continue
            puts.append(partial(self._put_layer, own.chain, kept.raw, kept.packed))
        each(lambda put_one: put_one(), [*puts, self.put_documents])

    def put_documents(self) -> None:
        """Stores what leads from the digests of index, manifest and configuration to the version, unless it leads to one with
        that document already."""
        each(self._put_document, (self.source.index, self.source.manifest, self.source.config))

    def _put_layer(self, chain: bytes, raw: int, packed: bytes | bytearray) -> None:
        """Stores the headers of a layer, unless they are there, with a version that has the layer."""
        name, number = self.published.version, self.published.number
        record = layer.LayerRecord(chain, name, number, raw, packed)

        def is_right(data: bytes) -> bool:
            found = layer.decode(data, chain)
            if found.version != name:
                _check_layer(Repository(self.store).version(found.version, found.number), chain)
            same = found.packed == packed
            return same or found.headers(expand_stream) == record.headers(expand_stream)

        put_derived(self.store, self.warn, partial(keys.layer, chain), limits.LAYER, layer.encode(record), is_right)

    def _put_document(self, document: bytes | None) -> None:
        if document is None:
            return
        digest = sha256(document).digest()
        is_index = document is self.source.index
        record = DocumentRecord(self.published.version, self.published.number, document if is_index else None)
        if not record.fits(digest, self.version):
            return  # an index of indexes, from which nobody could tell that the manifest belongs to it

        def is_right(data: bytes) -> bool:
            check_document(Repository(self.store), digest, data)
            return True

        put_derived(self.store, self.warn, partial(keys.oci, digest), limits.OCI, oci.encode(record), is_right)


def _check_layer(version: Version, chain: bytes) -> None:
    """Raises Corrupt for a version whose configuration does not list the stack of layers `chain`."""
    if chain not in config_chains(version.config):
        raise Corrupt(f"version {version.name.hex()} has no such stack of layers")
