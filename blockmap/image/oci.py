"""Images as manifests and blobs: OCI image layouts, and the directories that skopeo fills.

Documents: the OCI image-spec's index, manifest and configuration, and docker's v2 schema 2 forms of the first two. They are
kept byte for byte, and their fields are checked before use.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from blockmap.errors import FormatError, ImageError, UsageError
from blockmap.filesystem.member import Layer
from blockmap.format.digest import from_hex
from blockmap.image.layer import BlobLayer, chain_ids
from blockmap.image.platforms import Platform

_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_LAYERS = frozenset(
    base + suffix
    for base in ("application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar")
    for suffix in ("", "+gzip", "+zstd", ".gzip", ".zstd")
)
_MAX_DOCUMENT = 8 << 20
_REF_NAME = "org.opencontainers.image.ref.name"
_MAX_DEPTH = 4

BlobPath = Callable[[str], Path]
"""Returns the path of the blob with a digest like `sha256:HEX`."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A document's reference to another document, or to a layer."""

    media: str
    digest: str
    """Digest in the form `sha256:HEX`."""
    size: int | None
    """Size in bytes; None if it is not stated, since the digest proves the content anyway."""
    platform: dict[str, Any] | None
    tag: str | None


class OciImage:
    """An image whose documents and layers are files (an ImageSource)."""

    def __init__(self, blob: BlobPath, manifest: bytes, index: bytes | None, close: Callable[[], None]) -> None:
        document = parse(manifest, "the manifest")
        self.manifest: bytes | None = manifest
        self.index = index
        self._close = close
        self.config = read_blob(blob, describe(document.get("config")))
        layers = describe_all(document.get("layers"))
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
    """Opens the image `tag` of an OCI image layout, or its only image. Raises UsageError if there is a choice."""
    if not (directory / "oci-layout").is_file():
        raise ImageError(f"{directory} is not an OCI image layout: it has no file oci-layout")
    top = parse(_read(directory / "index.json"), f"{directory}/index.json")
    everything = describe_all(top.get("manifests"))
    if not everything:
        raise ImageError(f"{directory} holds no image: its index.json lists none")
    found = [descriptor for descriptor in everything if tag is None or descriptor.tag == tag]
    if len(found) > 1 and all(d.platform is not None and d.tag == found[0].tag for d in found):
        found = [choose(found, platform)]
    if len(found) != 1:
        tags = sorted({descriptor.tag for descriptor in everything if descriptor.tag})
        has = f"the tags {', '.join(tags)}" if tags else f"{len(everything)} images, none with a tag"
        asked = "the choice is not clear" if tag is None else f"{len(found) or 'none'} of its images is called {tag!r}"
        raise UsageError(f"{directory} has {has}, and {asked}: name one as oci:DIR:TAG")

    def blob(digest: str) -> Path:
        return directory / "blobs" / "sha256" / digest_hex(digest)

    manifest, index = select(read_blob(blob, found[0]), found[0].media, lambda below: read_blob(blob, below), platform)
    return OciImage(blob, manifest, index, lambda: None)


def select(
    top: bytes, media: str, read: Callable[[Descriptor], bytes], platform: Platform
) -> tuple[bytes, bytes | None]:
    """Returns the manifest for a platform, and `top` if that is an index; None if it is the manifest itself.

    `media` is the media type of `top`, "" if it is not known; `read` returns the document of a descriptor.
    """
    data = top
    for depth in range(_MAX_DEPTH):
        document = parse(data, "the manifest")
        own = document.get("mediaType")
        if media and own and own != media:
            raise ImageError(
                f"the manifest says that it is of the type {own!r}, and what names it says {media!r}: refused"
            )
        media = media or own or ""
        if "manifests" in document and ("layers" in document or "config" in document):
            raise ImageError("the manifest is an index and an image at once: refused, since it can be read in two ways")
        if media in _MANIFESTS or (not media and "layers" in document and "config" in document):
            return data, top if depth else None
        if media not in _INDEXES and (media or "manifests" not in document):
            raise ImageError(
                f"the manifest is of the type {media!r}, which is not supported: OCI and docker v2 schema 2 are"
            )
        descriptor = choose(describe_all(document.get("manifests")), platform)
        data, media = read(descriptor), descriptor.media
    raise ImageError(f"the image's indexes are nested more than {_MAX_DEPTH - 1} deep")


def choose(descriptors: list[Descriptor], platform: Platform) -> Descriptor:
    """Returns the descriptor of an index that fits a platform. Raises ImageError with a list of all if none does."""
    if len(descriptors) == 1 and descriptors[0].platform is None:
        return descriptors[0]
    for descriptor in descriptors:
        if platform.fits(descriptor.platform or {}):
            return descriptor
    for descriptor in descriptors:
        if descriptor.media in _INDEXES and descriptor.platform is None:
            return descriptor
    offered = []
    for own in (descriptor.platform or {} for descriptor in descriptors):
        offered.append(
            "/".join(str(own[key]) for key in ("os", "architecture", "variant") if own.get(key)) or "unknown"
        )
    raise ImageError(
        f"the image is not made for {platform}: choose one of {', '.join(sorted(set(offered))) or 'none'} with --platform"
    )


def describe(value: object) -> Descriptor:
    """Parses a descriptor of a document. Raises ImageError."""
    if not isinstance(value, dict):
        raise ImageError(f"the image is damaged: {str(value)[:80]!r} stands where a descriptor is expected")
    media, size, platform = value.get("mediaType") or "", value.get("size"), value.get("platform")
    annotations = value.get("annotations") or {}
    tag = annotations.get(_REF_NAME) if isinstance(annotations, dict) else None
    digest = value.get("digest")
    digest_hex(digest)
    if not isinstance(media, str) or not (size is None or (isinstance(size, int) and size >= 0)):
        raise ImageError(
            f"the image is damaged: the descriptor of {digest} has the type {media!r} and the size {size!r}"
        )
    return Descriptor(
        media,
        str(digest),
        size,
        platform if isinstance(platform, dict) else None,
        tag if isinstance(tag, str) else None,
    )


def describe_all(value: object) -> list[Descriptor]:
    """Parses a document's list of descriptors. Raises ImageError."""
    if value is not None and not isinstance(value, list):
        raise ImageError(f"the image is damaged: {str(value)[:80]!r} stands where a list of descriptors is expected")
    return [describe(part) for part in value or []]


def config_diff_ids(config: bytes) -> list[bytes]:
    """Returns the digests of the layers' archives that an image configuration lists."""
    try:
        return [from_hex(digest_hex(text)) for text in parse(config, "the configuration")["rootfs"]["diff_ids"] or []]
    except (KeyError, TypeError, FormatError) as error:
        raise ImageError(f"the image's configuration lists no layers (rootfs.diff_ids): {error}") from error


def read_blob(blob: BlobPath, descriptor: Descriptor) -> bytes:
    """Reads a document, and checks it against its descriptor."""
    data = _read(blob(descriptor.digest))
    check(data, descriptor)
    return data


def check(data: bytes, descriptor: Descriptor) -> None:
    """Raises ImageError if `data` is not the document described."""
    if "sha256:" + sha256(data).hexdigest() != descriptor.digest or descriptor.size not in (None, len(data)):
        raise ImageError(
            f"the document {descriptor.digest} is damaged: its content has another digest or size; get the image again"
        )


def parse(data: bytes, what: str) -> dict[str, Any]:
    """Parses a JSON object. Raises ImageError with `what`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ImageError(f"{what} is not a JSON object")
    return value


def digest_hex(text: object) -> str:
    """Returns the digits of `sha256:HEX`. Raises ImageError for any other digest."""
    if isinstance(text, str) and text.startswith("sha256:"):
        digits = text.removeprefix("sha256:")
        if len(digits) == 64 and not digits.strip("0123456789abcdef"):
            return digits
    raise ImageError(f"{str(text)[:140]!r} is not a SHA-256 digest: others are not supported")


def _layer(blob: BlobPath, descriptor: Descriptor, diff_id: bytes, chain: bytes) -> BlobLayer:
    digest = descriptor.digest
    if descriptor.media not in _LAYERS:
        if "foreign" in descriptor.media or "nondistributable" in descriptor.media:
            why = "a foreign layer, whose content is kept elsewhere and may not be copied"
        elif "encrypted" in descriptor.media:
            why = "encrypted: decrypt the image first, with skopeo copy --decryption-key"
        else:
            why = "not supported: plain, gzip and zstd tar archives are"
        raise ImageError(f"layer {digest} is of the type {descriptor.media!r}, which is {why}")
    path = blob(digest)
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise ImageError(f"layer {digest} is missing from the image: {error.strerror}; get it again") from error
    if descriptor.size not in (None, size):
        raise ImageError(
            f"layer {digest} has {size} bytes where {descriptor.size} are expected: it is truncated, get it again"
        )
    return BlobLayer(digest, lambda: open(path, "rb"), size, bytes.fromhex(digest_hex(digest)), diff_id, chain)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_DOCUMENT:
            raise ImageError(f"{path} is too long for a document of an image: {_MAX_DOCUMENT} bytes at most are read")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
