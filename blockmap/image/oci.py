"""Images as manifests and blobs: OCI image layouts, and the directories that skopeo fills."""

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from blockmap.errors import FormatError, ImageError, UsageError
from blockmap.format.digest import from_hex
from blockmap.image.layer import BlobLayer, chain_ids
from blockmap.image.member import Layer
from blockmap.image.platforms import Platform

_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_LAYERS = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff",
    "application/vnd.docker.image.layer.v1.tar",
)
_SUFFIXES = ("", "+gzip", "+zstd", ".gzip", ".zstd")
_MAX_DOCUMENT = 8 << 20
_REF_NAME = "org.opencontainers.image.ref.name"
_MAX_DEPTH = 4

BlobPath = Callable[[str], Path]
"""Where the blob with a digest like `sha256:HEX` is."""


class OciImage:
    """An image whose documents and layers are files (a Source)."""

    def __init__(self, blob: BlobPath, manifest: bytes, index: bytes | None, close: Callable[[], None]) -> None:
        document = parse(manifest, "the manifest")
        self.manifest: bytes | None = manifest
        self.index = index
        self._close = close
        try:
            self.config = read_blob(blob, document["config"])
            layers = list(document["layers"])
        except (KeyError, TypeError) as error:
            raise ImageError(
                f"the manifest lacks {error}: only OCI and docker v2 schema 2 manifests are supported"
            ) from error
        diff_ids = config_diff_ids(self.config)
        if len(diff_ids) != len(layers):
            raise ImageError(
                f"the image has {len(layers)} layers, but its configuration lists {len(diff_ids)}: it is damaged"
            )
        self.layers: list[Layer] = [
            _layer(blob, descriptor, *ids)
            for descriptor, *ids in zip(layers, diff_ids, chain_ids(diff_ids), strict=True)
        ]

    def close(self) -> None:
        self._close()


def open_layout(directory: Path, tag: str | None, platform: Platform) -> OciImage:
    """The image `tag` of an OCI image layout; without one, its only image."""
    if not (directory / "oci-layout").is_file():
        raise ImageError(f"{directory} is not an OCI image layout: it has no file oci-layout")
    top = parse(_read(directory / "index.json"), f"{directory}/index.json")
    found: list[Any] = list(top.get("manifests") or [])
    names = sorted({name for name in ((d.get("annotations") or {}).get(_REF_NAME) for d in found) if name})
    if tag is not None:
        found = [d for d in found if (d.get("annotations") or {}).get(_REF_NAME) == tag]
    if len(found) > 1 and all("platform" in descriptor for descriptor in found):
        found = [choose(found, platform)]
    if len(found) != 1:
        has = f"it has {', '.join(names)}" if names else f"it has {len(found)} images without a tag"
        wanted = f"no image {tag}" if tag is not None and not found else "more than one image"
        raise UsageError(
            f"{directory} has {wanted if found or tag is not None else 'no image'}: {has}; name one as oci:DIR:TAG"
        )

    def blob(digest: str) -> Path:
        return directory / "blobs" / "sha256" / digest_hex(digest)

    manifest, index = select(blob, found[0], platform)
    return OciImage(blob, manifest, index, lambda: None)


def select(blob: BlobPath, descriptor: Any, platform: Platform) -> tuple[bytes, bytes | None]:
    """The manifest that a descriptor leads to, and the index above it, if there is one."""
    index: bytes | None = None
    for _ in range(_MAX_DEPTH):
        data = read_blob(blob, descriptor)
        document = parse(data, "the manifest")
        media = descriptor.get("mediaType") or document.get("mediaType") or ""
        if media in _MANIFESTS or "layers" in document:
            return data, index
        if media not in _INDEXES and "manifests" not in document:
            raise ImageError(
                f"the manifest is of the type {media!r}, which is not supported: OCI and docker v2 schema 2 are"
            )
        index = data if index is None else index
        descriptor = choose(document.get("manifests") or [], platform)
    raise ImageError(f"the image's indexes are nested more than {_MAX_DEPTH} deep")


def choose(descriptors: list[Any], platform: Platform) -> Any:
    """The descriptor of an index that fits a platform; ImageError lists what there is."""
    offered = []
    for descriptor in descriptors:
        own = descriptor.get("platform") or {}
        if platform.fits(own):
            return descriptor
        offered.append(
            "/".join(str(own[key]) for key in ("os", "architecture", "variant") if own.get(key)) or "unknown"
        )
    raise ImageError(
        f"the image is not made for {platform}: choose one of {', '.join(sorted(set(offered)))} with --platform"
    )


def config_diff_ids(config: bytes) -> list[bytes]:
    """The digests of the layers' archives, from an image configuration."""
    try:
        return [from_hex(digest_hex(text)) for text in parse(config, "the configuration")["rootfs"]["diff_ids"]]
    except (KeyError, TypeError, FormatError) as error:
        raise ImageError(f"the image's configuration lists no layers (rootfs.diff_ids): {error}") from error


def read_blob(blob: BlobPath, descriptor: Any) -> bytes:
    """A document, checked against its descriptor."""
    try:
        digest, size = descriptor["digest"], descriptor.get("size")
    except (KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"a descriptor of the image is damaged: {error}") from error
    data = _read(blob(digest))
    if "sha256:" + sha256(data).hexdigest() != digest or (size is not None and size != len(data)):
        raise ImageError(
            f"the document {digest} is damaged: its content has another digest or size; get the image again"
        )
    return data


def parse(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ImageError(f"{what} is not a JSON object")
    return value


def digest_hex(text: object) -> str:
    """The digits of `sha256:HEX`; ImageError for any other digest."""
    if isinstance(text, str) and text.startswith("sha256:"):
        digits = text.removeprefix("sha256:")
        if len(digits) == 64 and not digits.strip("0123456789abcdef"):
            return digits
    raise ImageError(f"{text!r} is not a SHA-256 digest: others are not supported")


def _layer(blob: BlobPath, descriptor: Any, diff_id: bytes, chain: bytes) -> BlobLayer:
    media, digest = descriptor.get("mediaType", ""), descriptor["digest"]
    if not any(media == base + suffix for base in _LAYERS for suffix in _SUFFIXES):
        raise ImageError(
            f"layer {digest} is of the type {media!r}, which is not supported (foreign or encrypted, perhaps)"
        )
    path = blob(digest)
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise ImageError(f"layer {digest} is missing from the image: {error.strerror}; get it again") from error
    if descriptor.get("size") not in (None, size):
        raise ImageError(
            f"layer {digest} has {size} bytes where {descriptor['size']} are expected: it is truncated, get it again"
        )
    return BlobLayer(digest, lambda: open(path, "rb"), size, bytes.fromhex(digest_hex(digest)), diff_id, chain)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_DOCUMENT:
            raise ImageError(f"{path} is too long for a document of an image: {_MAX_DOCUMENT} bytes at most are read")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
