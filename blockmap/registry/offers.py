"""Chooses the manifest under which a version is given: the one that it had, where all its blobs can be made again, else a new one.

A new one lists the archives themselves, without compression, in place of blobs that cannot be made: its configuration, and so the
image's ID, is the same, and every host makes the same one.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from blockmap.errors import Corrupt
from blockmap.export.blobs import Checked, PlannedLayer, WrittenBlob
from blockmap.export.documents import listed_layers, manifest_type, new_manifest
from blockmap.export.plan import ImagePlan, plan_image
from blockmap.format import keys
from blockmap.format.digest import Digest
from blockmap.format.version import Version
from blockmap.image.gzip_tools import GzipTool, compress, is_present
from blockmap.image.media_types import OCI_CONFIG, OCI_LAYER
from blockmap.image.oci import parse
from blockmap.registry.served import Document, LayerBlob, ServedDigests
from blockmap.registry.spool import SpooledBlob
from blockmap.store.blobs import find_recipe, kept_blob
from blockmap.store.concurrent import each
from blockmap.store.repository import Repository

_PLANS = 4
"""Versions of which the layers' headers are kept in memory: some 10 MB each."""


class Offers:
    """What a registry gives of versions; safe to share between threads."""

    def __init__(self, repository: Repository, served: ServedDigests, work: Path, warn: Callable[[str], None]) -> None:
        self._repository, self._served, self._work, self._warn = repository, served, work, warn
        self._lock = threading.Lock()  # guards what follows; never held across I/O
        self._plans: OrderedDict[Digest, ImagePlan] = OrderedDict()
        self._making: dict[Digest, threading.Lock] = {}
        """One for each version whose manifest is made at this moment; that takes seconds and is done once."""

    def manifest(self, version: Version) -> Document:
        """Returns the manifest of a version. Raises Corrupt, NotFound, ImageError, StoreUnavailable, HostError."""
        with self._lock:
            making = self._making.setdefault(version.name, threading.Lock())
        with making:
            return self._served.manifest_of(version.name) or self._make_manifest(version)

    def has_original(self, version: Version) -> bool:
        """Returns True if a version can be given under the manifest that it had."""
        if version.manifest is None or version.config is None or version.parents:
            return False
        return all(each(self._can_make, [blob for blob, _ in listed_layers(version.manifest)]))

    def pieces(self, layer: LayerBlob) -> Iterator[bytes]:
        """Yields a layer's blob; whoever takes it compares digests. Raises Corrupt, NotFound, StoreUnavailable, HostError."""
        kept = None if layer.is_plain else kept_blob(self._repository.store, layer.digest)
        if kept is not None:
            return kept
        planned = self._plan(self._repository.version(layer.version)).layers[layer.place]
        archive = Checked(planned).pieces()
        if layer.is_plain:
            return archive
        recipe = find_recipe(self._repository.store, layer.digest)
        if recipe is None or recipe.tool is None:
            raise Corrupt(f"nothing says any more how sha256:{layer.digest.hex()} is made: import the image again")
        return compress(GzipTool(recipe.tool, recipe.level), recipe.header, archive, self._work)

    def fill(self, layer: LayerBlob, blob: SpooledBlob) -> None:
        """Makes a layer's blob; where it becomes another than it was, its version is given under a new manifest from then on."""
        blob.fill(lambda: self.pieces(layer), lambda: self._served.note_other(layer))

    def _make_manifest(self, version: Version) -> Document:
        if self.has_original(version):
            assert version.manifest is not None
            assert version.config is not None
            sizes = _sizes(version.manifest)
            layers = [
                LayerBlob(blob, version.name, place, sizes[blob], False)
                for place, (blob, _) in enumerate(listed_layers(version.manifest))
            ]
            made = Document(sha256(version.manifest).digest(), manifest_type(version.manifest), version.manifest)
            config_type = str(parse(version.manifest, "the manifest")["config"].get("mediaType") or OCI_CONFIG)
            config = Document(sha256(version.config).digest(), config_type, version.config)
        else:
            made, config, layers = self._rewritten(version)
        self._served.note(version.name, made, config, layers)
        return made

    def _rewritten(self, version: Version) -> tuple[Document, Document, list[LayerBlob]]:
        plan = self._plan(version)
        sizes = {} if plan.manifest is None else _sizes(plan.manifest)
        blobs, layers = [], []
        for place, planned in enumerate(plan.layers):
            diff_id = planned.diff_id or _digest_of(planned)
            if planned.blob in sizes and planned.blob is not None and self._can_make(planned.blob):
                blob = WrittenBlob(diff_id, planned.blob, sizes[planned.blob], planned.media)
            else:
                blob = WrittenBlob(diff_id, diff_id, planned.archive.size, OCI_LAYER)
            blobs.append(blob)
            layers.append(LayerBlob(blob.digest, version.name, place, blob.size, blob.digest == diff_id))
        config = plan.config([blob.diff_id for blob in blobs])
        manifest = new_manifest(config, blobs, plan.manifest)
        return (
            Document(sha256(manifest).digest(), manifest_type(manifest), manifest),
            Document(sha256(config).digest(), OCI_CONFIG, config),
            layers,
        )

    def _can_make(self, blob: bytes) -> bool:
        store = self._repository.store
        if store.exists(keys.blob_part(blob, 1)):
            return True
        if self._served.is_other(blob):
            return False
        recipe = find_recipe(store, blob)
        return recipe is not None and recipe.tool is not None and is_present(GzipTool(recipe.tool, recipe.level))

    def _plan(self, version: Version) -> ImagePlan:
        with self._lock:
            plan = self._plans.get(version.name)
        if plan is None:
            plan = plan_image(self._repository, version, self._warn)
        with self._lock:
            self._plans[version.name] = plan
            self._plans.move_to_end(version.name)
            while len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        return plan


def _sizes(manifest: bytes) -> dict[bytes, int]:
    """Returns the bytes of each blob that a manifest lists."""
    layers = parse(manifest, "the manifest").get("layers") or []
    return {bytes.fromhex(each["digest"].removeprefix("sha256:")): int(each["size"]) for each in layers}


def _digest_of(layer: PlannedLayer) -> bytes:
    checked = Checked(layer)
    for _ in checked.pieces():
        pass
    return checked.diff_id
