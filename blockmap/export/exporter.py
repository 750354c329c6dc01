"""An export from end to end: version -> layers -> blobs or archives -> configuration and manifest -> destination."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from blockmap.errors import HostError
from blockmap.export.blobs import BlobMaker, Checked, WrittenBlob
from blockmap.export.destinations import (
    Destination,
    Form,
    blobs_folder,
    finish_layout,
    pack_layout,
    write_docker_archive,
)
from blockmap.export.documents import manifest_type, new_manifest
from blockmap.export.plan import ImagePlan, plan_image
from blockmap.format.version import Version
from blockmap.image.media_types import OCI_MANIFEST
from blockmap.image.skopeo import push
from blockmap.store.concurrent import each
from blockmap.store.repository import Repository

_DIRECTORY_VERSION = b"Directory Transport Version: 1.1\n"
_LAYERS_AT_ONCE = 4
"""Layers that are made at once, if there are as many processors: each takes one, and 100 MB of memory."""


@dataclass(frozen=True, slots=True)
class ExportedImage:
    """What an export wrote."""

    config: bytes
    """SHA-256 of the configuration, which is the image's ID."""
    was_config: bytes | None
    """SHA-256 of the configuration that was imported."""
    manifest: bytes | None
    """SHA-256 of the manifest; None in a docker archive, which has none."""
    was_manifest: bytes | None
    """SHA-256 of the manifest that the image was imported with; None for one that is changed, or had none."""
    why_other: str
    """Why the manifest is another than it was; empty if it is not, or was none."""
    layers: list[WrittenBlob]
    """The blobs of the layers; in a docker archive the archives themselves."""
    archive_bytes: int
    """Bytes of all layers' archives."""


class Exporter:
    """Exports versions of one store; `work` is a folder for what is temporary."""

    def __init__(self, repository: Repository, work: Path, warn: Callable[[str], None]) -> None:
        self._repository, self._work, self._warn = repository, work, warn

    def run(self, version: Version, destination: Destination) -> ExportedImage:
        """Writes a version as an image. Raises Corrupt, NotFound, ImageError, HostError, StoreUnavailable."""
        plan = plan_image(self._repository, version, self._warn)
        try:
            if destination.form is Form.DOCKER_ARCHIVE:
                return self._docker_archive(version, plan, destination)
            if destination.form is Form.REGISTRY:
                return self._registry(version, plan, destination.tag)
            return self._layout(version, plan, destination)
        except OSError as error:
            raise HostError(f"cannot write the image: {error.strerror or error}") from error

    def _layout(self, version: Version, plan: ImagePlan, destination: Destination) -> ExportedImage:
        packed = destination.form is Form.OCI_ARCHIVE
        layout = self._work / "layout" if packed else destination.path
        exported, manifest = self._blobs(version, plan, blobs_folder(layout))
        described = {
            "mediaType": OCI_MANIFEST,
            "digest": f"sha256:{sha256(manifest).hexdigest()}",
            "size": len(manifest),
        }
        finish_layout(layout, described, destination.tag)
        if packed:
            pack_layout(layout, destination.path)
        return exported

    def _registry(self, version: Version, plan: ImagePlan, reference: str) -> ExportedImage:
        folder = self._work / "directory"
        folder.mkdir()
        exported, manifest = self._blobs(version, plan, folder, is_layout=False)
        (folder / "manifest.json").write_bytes(manifest)
        (folder / "version").write_bytes(_DIRECTORY_VERSION)
        push(folder, reference, self._work)
        return exported

    def _blobs(
        self, version: Version, plan: ImagePlan, folder: Path, is_layout: bool = True
    ) -> tuple[ExportedImage, bytes]:
        """Writes all blobs of an image, its documents among them; returns its manifest as well."""
        maker = BlobMaker(self._repository.store, folder, self._work)
        largest = sorted(range(len(plan.layers)), key=lambda number: -plan.layers[number].archive.size)
        at_once = min(os.cpu_count() or 1, _LAYERS_AT_ONCE)
        made = dict(zip(largest, each(lambda number: maker.make(plan.layers[number]), largest, at_once), strict=True))
        blobs = [made[number] for number in range(len(plan.layers))]
        config = plan.config([blob.diff_id for blob in blobs])
        maker.put(config)
        manifest, why = new_manifest(config, blobs, plan.manifest), ""
        if plan.is_unchanged and plan.manifest is not None:
            if [layer.blob for layer in plan.layers] != [blob.digest for blob in blobs]:
                why = "it lists other blobs"
            elif is_layout and manifest_type(plan.manifest) != OCI_MANIFEST:
                why = "it was in docker's own form, which skopeo and podman do not find in OCI layouts; docker://REF keeps it"
            else:
                manifest = plan.manifest
        digest = maker.put(manifest)
        return self._exported(version, plan, config, digest, why, blobs), manifest

    def _docker_archive(self, version: Version, plan: ImagePlan, destination: Destination) -> ExportedImage:
        checked = [Checked(layer) for layer in plan.layers]
        config = b""

        def made_config() -> bytes:
            nonlocal config
            config = plan.config([layer.diff_id for layer in checked])
            return config

        write_docker_archive(
            destination.path,
            destination.tag,
            [(layer.archive.size, own.pieces) for layer, own in zip(plan.layers, checked, strict=True)],
            made_config,
            lambda document: f"{sha256(document).hexdigest()}.json",
        )
        layers = [
            WrittenBlob(own.diff_id, own.diff_id, layer.archive.size, "")
            for layer, own in zip(plan.layers, checked, strict=True)
        ]
        return self._exported(version, plan, config, None, "", layers)

    @staticmethod
    def _exported(
        version: Version, plan: ImagePlan, config: bytes, manifest: bytes | None, why: str, layers: list[WrittenBlob]
    ) -> ExportedImage:
        def digest(document: bytes | None) -> bytes | None:
            return None if document is None or not plan.is_unchanged else sha256(document).digest()

        return ExportedImage(
            sha256(config).digest(),
            digest(version.config),
            manifest,
            digest(plan.manifest),
            why,
            layers,
            sum(layer.archive.size for layer in plan.layers),
        )
