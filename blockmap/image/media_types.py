"""Media types of the documents and layers of images, and of what registries keep beside images."""

import re
from collections.abc import Sequence

from blockmap.errors import ImageError

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
"""A layer that is not compressed."""
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = (OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
LAYERS = frozenset(
    base + suffix
    for base in (OCI_LAYER, "application/vnd.docker.image.rootfs.diff.tar")
    for suffix in ("", "+gzip", "+zstd", "+xz", "+bzip2", ".gzip", ".zstd", ".xz", ".bzip2")
)
CONFIGS = (
    OCI_CONFIG, "application/vnd.docker.container.image.v1+json",
    "application/octet-stream", "application/json", "",
)  # fmt: skip
"""Types of configurations of images; docker takes the last three as well, which old registries gave."""
_KINDS_OF_ARTIFACT = (
    (re.compile(r"helm|chart"), "a Helm chart"),
    (re.compile(r"cosign|simplesigning|sigstore|notary|signature"), "a signature"),
    (re.compile(r"in-toto|dsse|slsa|provenance|attestation"), "an attestation"),
    (re.compile(r"spdx|cyclonedx|syft|sbom"), "a bill of materials (SBOM)"),
    (re.compile(r"docker\.plugin"), "a plugin of docker"),
    (re.compile(r"wasm"), "a WebAssembly module"),
)


def refuse_artifacts(artifact: object, config: str, layers: Sequence[str]) -> None:
    """Raises ImageError, by the types in a manifest, for what is no image: an `artifactType`, a configuration, layers."""
    if config in CONFIGS and any(media in LAYERS for media in layers):
        return
    types = [config, *layers]
    if isinstance(artifact, str) and config not in CONFIGS:
        types.insert(0, artifact)
    named = next(
        ((kind, media) for media in types for pattern, kind in _KINDS_OF_ARTIFACT if pattern.search(media)), None
    )
    if named is None and config not in CONFIGS:
        named = "an artifact", types[0]
    if named is not None:
        raise ImageError(
            f"this is {named[0]} (of the type {named[1]!r}), not an image: there are no files in it to import"
        )
