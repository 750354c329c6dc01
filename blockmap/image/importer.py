"""An import from end to end: source -> members -> ext4 blocks -> publication.

    find_standing       the store has the version already: its name is moved, and nothing is read
    find_known_layers   lower layers that a version in the store has: their headers are replayed, their contents stay
    write_layers        the other layers, read once
    publish             the recipe (publish.publication)

What can be made again from the version follows its name: file map, headers of layers, OCI digests, bundles of profiles.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from blockmap.errors import BlockmapError, Collected
from blockmap.filesystem.ext4.writer import WRITER, Ext4Writer
from blockmap.filesystem.member import ImageSource
from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.recipe import BlobRecipe
from blockmap.format.version import Version, WriterLayout
from blockmap.image.disk_image import DiskSource
from blockmap.image.kept_blobs import find_recipes, keep_blobs, put_recipes, without_recipe
from blockmap.image.known_layers import KnownLayers, UnusableLayers, find_known_layers, take_over
from blockmap.image.layer import BlobLayer
from blockmap.image.records import VersionRecords
from blockmap.image.standing import find_standing, has_all_blobs
from blockmap.image.volume_writer import THRESHOLD_BLOCKS, WrittenVolume, write_disk, write_layers
from blockmap.learn.bundler import put_bundles
from blockmap.publish.catalogue import Catalogue, read_catalogue
from blockmap.publish.chunks import Counts
from blockmap.publish.local import LocalCatalogue
from blockmap.publish.publication import Derive, Publication, Published
from blockmap.publish.reliance import Reliance
from blockmap.publish.stages import Stages
from blockmap.publish.trees import Trees
from blockmap.store.base import Pruner
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from blockmap.store.opening import Format, check_unchanged
from blockmap.store.repository import Repository
from blockmap.store.signing import Signer


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
        target = NameTarget(repo, tag)
        names = NameLog(self._store, signer=self._signer)
        with stages.time("known"):
            catalogue = read_catalogue(self._store, names, self._local, self._warn)
        known: KnownLayers | None = None
        recipes: dict[bytes, BlobRecipe] = {}
        if not isinstance(source, DiskSource):
            layout = WriterLayout(WRITER, threshold)
            with stages.time("known"):
                if not keeps_blobs or has_all_blobs(self._store, source):
                    named = self._name_standing(names, catalogue, source, target, layout)
                    if named is not None:
                        return _summary(target, *named, 0, began, stages)
                known = self._find_known(catalogue, source, target, layout)
            first = 0 if known is None else len(known.layers)
            with stages.time("recipes"):
                unnoted = without_recipe(self._store, source.layers[:first])
                source.need(0 if keeps_blobs else min([first, *unnoted]))
                recipes = find_recipes(self._store, [*map(source.layers.__getitem__, unnoted), *source.layers[first:]])
        with Publication(self._store, self._form, names, catalogue, self._warn) as publication:
            laid, counts, trees = self._store_trees(source, publication, stages, threshold, known)
            version = _version(source, trees, laid.layout)
            derived: list[Derive] = [
                lambda published: self._put_records(source, laid, version, published),
                lambda published: put_bundles(self._store, repo, published.version, published.root, self._warn),
                lambda published: put_recipes(self._store, recipes),
            ]
            published = publication.publish(target, version, "import", derived)
        kept = keep_blobs(self._store, source.layers) if keeps_blobs and not isinstance(source, DiskSource) else 0
        return _summary(target, published, version, counts, trees.stored_bytes, began, stages, kept)

    def _name_standing(
        self, names: NameLog, catalogue: Catalogue, source: ImageSource, target: NameTarget, layout: WriterLayout
    ) -> tuple[Published, Version, Counts] | None:
        """Moves the name to the version that the store has of an image; None where it has none, or not all of it."""
        standing = find_standing(Repository(self._store), catalogue, source, target, layout, self._signer)
        if standing is None:
            return None
        version, number = standing.version, standing.number
        reliance = Reliance(self._store, names, catalogue.collections, self._warn)
        try:
            draft = EntryDraft.of(version, number, "import")
            entry = reliance.name(target, version, draft, lambda: check_unchanged(self._store, self._form))
        except Collected:  # an import stores again what has gone
            return None
        published = Published(version.name, number, entry, version.root)
        try:
            VersionRecords(self._store, self._warn, source, version, published).put_documents()
            put_bundles(self._store, target.repo, version.name, version.root, self._warn)
        except BlockmapError as error:
            self._warn(f"{target} is in the store; what speeds its use up is not, until it is imported again: {error}")
        return published, version, standing.counts

    def _find_known(
        self, catalogue: Catalogue, source: ImageSource, target: NameTarget, layout: WriterLayout
    ) -> KnownLayers | None:
        """Returns the layers that need not be read; none where imports are signed, since nobody signs the headers of layers, and
        what is signed here is vouched for."""
        layers = [own for own in source.layers if isinstance(own, BlobLayer)]
        if self._signer is not None or len(layers) < len(source.layers):
            return None
        return find_known_layers(Repository(self._store), catalogue, layers, target, layout)

    def _store_trees(
        self,
        source: ImageSource | DiskSource,
        publication: Publication,
        stages: Stages,
        threshold: int,
        known: KnownLayers | None,
    ) -> tuple[WrittenVolume, Counts, Trees]:
        """Stores the trees of a source; reads all of it where what is known of its layers is of no use."""
        if known is not None and not isinstance(source, DiskSource):
            try:
                return _store_trees(source, publication, stages, threshold, known)
            except UnusableLayers as error:
                self._warn(f"all layers are read again, since what the store has of them is of no use: {error}")
                source.need(0)
        return _store_trees(source, publication, stages, threshold)

    def _put_records(
        self, source: ImageSource | DiskSource, laid: WrittenVolume, version: Version, published: Published
    ) -> None:
        if not isinstance(source, DiskSource):
            VersionRecords(self._store, self._warn, source, version, published).put_all(laid.files, laid.headers)

    def heal(self, source: ImageSource | DiskSource) -> None:
        """Stores again what packs of the store have lost of `source`, for all versions that need it; moves no name."""
        names = NameLog(self._store)
        catalogue = read_catalogue(self._store, names, self._local, self._warn)
        if not isinstance(source, DiskSource):
            source.need(0)
        with Publication(self._store, self._form, names, catalogue, self._warn) as publication:
            _store_trees(source, publication, Stages(), THRESHOLD_BLOCKS)


def _summary(
    target: NameTarget,
    published: Published,
    version: Version,
    counts: Counts,
    node_bytes: int,
    began: float,
    stages: Stages,
    kept: int = 0,
) -> Summary:
    return Summary(
        str(target),
        published.version,
        version.root.digest,
        0 if published.entry is None else published.entry.n,
        version.root.size * BLOCK,
        counts,
        node_bytes,
        time.monotonic() - began,
        stages.seconds(),
        kept,
    )


def _store_trees(
    source: ImageSource | DiskSource,
    publication: Publication,
    stages: Stages,
    threshold: int,
    known: KnownLayers | None = None,
) -> tuple[WrittenVolume, Counts, Trees]:
    """Writes the volume of a source, and stores its trees. Raises UnusableLayers before it has read anything."""
    with publication.chunk_writer(stages) as chunks:
        with stages.time("layers"):
            if isinstance(source, DiskSource):
                laid = write_disk(source, chunks)
            else:
                writer = Ext4Writer(chunks, threshold)
                if known is not None:
                    take_over(known, writer, publication.known, chunks)
                laid = write_layers(source, writer, threshold, [] if known is None else known.headers())
        chunks.finish()
        if not isinstance(source, DiskSource):
            stages.add("decompress", sum(own.cpu_seconds for own in source.layers))
        with stages.time("tree"):
            trees = publication.assemble(chunks, laid.size, laid.hidden)
    return laid, chunks.counts, trees


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
