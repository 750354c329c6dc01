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
from blockmap.image.media_types import INDEXES, LAYERS, MANIFESTS, refuse_artifacts
from blockmap.image.platforms import Platform
from blockmap.image.tolerance import UnpackPolicy, Warn

_MAX_DOCUMENT = 4 << 20
"""The most that registries take; as JSON of nothing but brackets it takes 100 MB of memory."""
REF_NAME = "org.opencontainers.image.ref.name"
"""The annotation that has the tag of an image in a layout."""
_REFERENCE_TYPE = "vnd.docker.reference.type"
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
    attestation: bool
    """Whether it is what buildx states about an image, which stands among the images of an index."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Where the documents come from that descriptors describe."""

    read: Callable[[Descriptor], bytes]
    config: Callable[[Descriptor], bytes]
    """Returns the configuration of the image whose manifest is described."""

    def platform(self, descriptor: Descriptor) -> dict[str, Any]:
        """Returns the platform in the configuration of an image; empty if it is not here, as those of other platforms may be."""
        try:
            return parse(self.config(descriptor), "the configuration")
        except ImageError:
            return {}


Fetch = Callable[[list[Descriptor], list[Descriptor]], None]
"""Brings the blobs of an image's upper layers here, given the layers below, which are not needed, and those."""


class OciImage:
    """An image whose documents and layers are files (an ImageSource)."""

    def __init__(
        self,
        blob: BlobPath,
        manifest: bytes,
        index: bytes | None,
        policy: UnpackPolicy,
        close: Callable[[], None],
        fetch: Fetch | None = None,
    ) -> None:
        """With `fetch`, layers come by it alone; without, they must be here."""
        document = parse(manifest, "the manifest")
        config = describe(document.get("config"))
        layers = describe_all(document.get("layers"))
        refuse_artifacts(document.get("artifactType"), config.media, [layer.media for layer in layers])
        self.manifest: bytes | None = manifest
        self.index = index
        self._close = close
        self.config = read_blob(blob, config)
        diff_ids = config_diff_ids(self.config)
        if len(diff_ids) != len(layers):
            raise ImageError(
                f"the image has {len(layers)} layers, but its configuration lists {len(diff_ids)}: it is damaged"
            )
        self.layers: list[Layer] = [
            _layer(blob, descriptor, diff_id, chain, policy)
            for descriptor, diff_id, chain in zip(layers, diff_ids, chain_ids(diff_ids), strict=True)
        ]
        self._blob, self._fetch = blob, fetch
        self._described = layers
        if fetch is None:
            self.need(0)

    def need(self, first: int) -> None:
        needed = self._described[first:]
        if self._fetch is not None and needed:
            self._fetch(self._described[:first], needed)
        for own, descriptor in zip(self.layers[first:], needed, strict=True):
            own.size = _size(self._blob(descriptor.digest), descriptor)

    def close(self) -> None:
        self._close()


def open_layout(
    directory: Path,
    tag: str | None,
    platform: Platform,
    policy: UnpackPolicy | None = None,
    name: str | None = None,
    close: Callable[[], None] = lambda: None,
) -> OciImage:
    """Opens the image `tag` of an OCI image layout, or its only image. Raises UsageError if there is a choice.

    `name` is what a person calls the layout, if it is not the directory.
    """
    policy = policy or UnpackPolicy()
    called = name or str(directory)
    if not (directory / "oci-layout").is_file():
        raise ImageError(f"{called} is not an OCI image layout: it has no file oci-layout")
    top = parse(_read(directory / "index.json"), f"{called}/index.json")
    everything = describe_all(top.get("manifests"))
    if not everything:
        raise ImageError(f"{called} holds no image: its index.json lists none")
    found = [descriptor for descriptor in everything if tag is None or descriptor.tag == tag]

    def blob(digest: str) -> Path:
        return directory / "blobs" / "sha256" / digest_hex(digest)

    def read(descriptor: Descriptor) -> bytes:
        return read_blob(blob, descriptor)

    def config(descriptor: Descriptor) -> bytes:
        return read(describe(parse(read(descriptor), "the manifest").get("config")))

    documents = Documents(read, config)
    if len(found) > 1 and len({d.tag for d in found}) == 1 and (found[0].tag or any(d.platform for d in found)):
        found = [choose(found, documents, platform, policy.warn)]
    if len(found) != 1:
        tags = sorted({descriptor.tag for descriptor in everything if descriptor.tag})
        has = f"the tags {', '.join(tags)}" if tags else f"{len(everything)} images, none with a tag"
        asked = "the choice is not clear" if tag is None else f"{len(found) or 'none'} of its images is called {tag!r}"
        raise UsageError(f"{called} has {has}, and {asked}: name one as {name or 'oci:DIR'}:TAG")
    manifest, index = select(read(found[0]), found[0].media, documents, platform, policy.warn)
    return OciImage(blob, manifest, index, policy, close)


def select(top: bytes, media: str, documents: Documents, platform: Platform, warn: Warn) -> tuple[bytes, bytes | None]:
    """Returns the manifest for a platform, and `top` if that is an index; None if it is the manifest itself.

    `media` is the media type of `top`, "" if it is not known.
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
        if media in MANIFESTS or (not media and "layers" in document and "config" in document):
            return data, top if depth else None
        if media not in INDEXES and (media or "manifests" not in document):
            raise ImageError(
                f"the manifest is of the type {media!r}, which is not supported: OCI and docker v2 schema 2 are"
            )
        descriptor = choose(describe_all(document.get("manifests")), documents, platform, warn)
        data, media = documents.read(descriptor), descriptor.media
    raise ImageError(f"the image's indexes are nested more than {_MAX_DEPTH - 1} deep")


def choose(descriptors: list[Descriptor], documents: Documents, platform: Platform, warn: Warn) -> Descriptor:
    """Returns the descriptor of an index that fits a platform. Raises ImageError with a list of all if none does.

    Platforms are optional: for an image without one its configuration counts.
    """
    images = [descriptor for descriptor in descriptors if not descriptor.attestation]
    if len(images) == 1 and images[0].platform is None:
        return images[0]
    for descriptor in images:
        if platform.fits(descriptor.platform or {}):
            return descriptor
    offered = [descriptor.platform for descriptor in images if descriptor.platform]
    for descriptor in images:
        if descriptor.platform is None and descriptor.media not in INDEXES:
            found = documents.platform(descriptor)
            if platform.fits(found):
                warn(
                    f"the index does not say for which platforms its images are: {descriptor.digest} is for {platform}"
                )
                return descriptor
            offered.append(found)
    for descriptor in images:
        if descriptor.media in INDEXES and descriptor.platform is None:
            return descriptor
    names = {
        "/".join(str(own[key]) for key in ("os", "architecture", "variant") if own.get(key)) or "unknown"
        for own in offered
    }
    raise ImageError(
        f"the image is not made for {platform}: choose one of {', '.join(sorted(names)) or 'none'} with --platform"
    )


def describe(value: object) -> Descriptor:
    """Parses a descriptor of a document. Raises ImageError."""
    if not isinstance(value, dict):
        raise ImageError(f"the image is damaged: {str(value)[:80]!r} stands where a descriptor is expected")
    media, size, platform = value.get("mediaType") or "", value.get("size"), value.get("platform")
    annotations = value.get("annotations") or {}
    annotations = annotations if isinstance(annotations, dict) else {}
    tag = annotations.get(REF_NAME)
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
        annotations.get(_REFERENCE_TYPE) == "attestation-manifest",
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


def _layer(blob: BlobPath, descriptor: Descriptor, diff_id: bytes, chain: bytes, policy: UnpackPolicy) -> BlobLayer:
    digest = descriptor.digest
    if descriptor.media not in LAYERS:
        if "foreign" in descriptor.media or "nondistributable" in descriptor.media:
            why = "a foreign layer, whose content is kept elsewhere and may not be copied"
        elif "encrypted" in descriptor.media:
            why = "encrypted: decrypt the image first, with skopeo copy --decryption-key"
        else:
            why = "not supported: tar archives are, plain or compressed with gzip, zstd, xz or bzip2"
        raise ImageError(f"layer {digest} is of the type {descriptor.media!r}, which is {why}")
    path = blob(digest)
    size = descriptor.size or 0
    return BlobLayer(digest, lambda: open(path, "rb"), size, bytes.fromhex(digest_hex(digest)), diff_id, chain, policy)


def _size(path: Path, descriptor: Descriptor) -> int:
    """Returns the size of a layer's blob. Raises ImageError if it is another than the descriptor's, or not here."""
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise ImageError(
            f"layer {descriptor.digest} is missing from the image: {error.strerror}; get it again"
        ) from error
    if descriptor.size not in (None, size):
        raise ImageError(
            f"layer {descriptor.digest} has {size} bytes where {descriptor.size} are expected: it is truncated, get it again"
        )
    return size


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_DOCUMENT:
            raise ImageError(f"{path} is too long for a document of an image: {_MAX_DOCUMENT} bytes at most are read")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
