"""Configurations and manifests of images that are written: those that were, byte for byte, or new ones made of them."""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from blockmap.export.blobs import WrittenBlob
from blockmap.format.version import Version
from blockmap.image.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from blockmap.image.oci import parse
from blockmap.image.platforms import parse_platform

_CREATED_BY = "blockmap commit"


def committed_config(version: Version, written: str, diff_ids: Sequence[bytes], is_changed: bool) -> bytes:
    """Returns the configuration of a committed version: as its base's, with a line of history, and a layer if it is changed.

    `written` is the date of the change, `diff_ids` has the layers with the new one.
    """
    document = parse(version.config or b"{}", "the configuration")
    created = written or version.created
    own = {"created": created, "created_by": _CREATED_BY, "author": version.author, "comment": version.message}
    step = {key: value for key, value in own.items() if value} | ({} if is_changed else {"empty_layer": True})
    history = [each for each in document.get("history") or [] if isinstance(each, dict)]
    below = len(diff_ids) - is_changed
    history += [{"created_by": "blockmap import"}] * (below - sum(not each.get("empty_layer") for each in history))
    return _dump({**_described(document, created, diff_ids), "history": [*history, step]})


def plain_config(version: Version, written: str, diff_id: bytes) -> bytes:
    """Returns the configuration of an image of one layer, which was a disk image or whose layers are gone."""
    document = parse(version.config or b"{}", "the configuration")
    document.pop("history", None)
    return _dump(_described(document, written or version.created, [diff_id]))


def _described(document: dict[str, Any], created: str, diff_ids: Sequence[bytes]) -> dict[str, Any]:
    platform = parse_platform(None)
    described: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os, "config": {}, **document}
    if created:
        described["created"] = created
    described["rootfs"] = {"type": "layers", "diff_ids": [f"sha256:{diff_id.hex()}" for diff_id in diff_ids]}
    return described


def new_manifest(config: bytes, blobs: Sequence[WrittenBlob], below: bytes | None) -> bytes:
    """Returns the OCI manifest of an image; `below` is the manifest that it had, whose annotations it keeps."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(OCI_CONFIG, sha256(config).digest(), len(config)),
        "layers": [_descriptor(_oci_type(blob.media), blob.digest, blob.size) for blob in blobs],
    }
    annotations = parse(below or b"{}", "the manifest").get("annotations")
    return _dump({**document, "annotations": annotations} if annotations else document)


def listed_layers(manifest: bytes | None) -> list[tuple[bytes, str]]:
    """Returns the SHA-256 and media type of each blob that a manifest lists as a layer; none without a manifest."""
    layers = parse(manifest or b"{}", "the manifest").get("layers") or []
    return [(bytes.fromhex(each["digest"].removeprefix("sha256:")), each.get("mediaType", "")) for each in layers]


def manifest_type(manifest: bytes) -> str:
    """Returns the media type of a manifest; OCI's need not say it."""
    return str(parse(manifest, "the manifest").get("mediaType") or OCI_MANIFEST)


def _oci_type(media: str) -> str:
    """Returns the OCI media type of a layer that has docker's."""
    for suffix in ("gzip", "zstd", "xz", "bzip2"):
        if media.endswith((f".{suffix}", f"+{suffix}")):
            return f"{OCI_LAYER}+{suffix}"
    return OCI_LAYER


def _descriptor(media: str, digest: bytes, size: int) -> dict[str, Any]:
    return {"mediaType": media, "digest": f"sha256:{digest.hex()}", "size": size}


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
