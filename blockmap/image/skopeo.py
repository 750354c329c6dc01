"""Copies images with skopeo: from and to registries, with its credentials, and from a docker daemon.

Images are copied to skopeo's own kind of directory, not to an OCI layout, for which skopeo would rewrite docker's
manifests: the digest that people know would be lost.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from blockmap.errors import HostError, ImageError
from blockmap.image.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from blockmap.image.oci import Descriptor, Documents, OciImage, check, digest_hex, select
from blockmap.image.platforms import Platform
from blockmap.image.tolerance import UnpackPolicy, Warn

_REGISTRY = "docker://"
_PIECE_BYTES = 1 << 20
_MESSAGE = re.compile(r'\bmsg="((?:[^"\\]|\\.)*)"')


def open_remote(reference: str, platform: Platform, work: Path, policy: UnpackPolicy | None = None) -> OciImage:
    """Copies an image unchanged into a directory below `work`, and opens it; closing the image removes the copy.

    Raises HostError without skopeo, ImageError if it fails or nothing fits the platform.
    """
    if shutil.which("skopeo") is None:
        raise HostError(f"skopeo is needed to read {reference} and is not installed: apt-get install skopeo")
    policy = policy or UnpackPolicy()
    directory = Path(tempfile.mkdtemp(prefix="image-", dir=work))
    try:
        manifest, index, exact = None, None, reference
        if reference.startswith(_REGISTRY):
            manifest, index = _look_up(reference, platform, work, policy.warn)
            exact = _by_digest(reference, "sha256:" + sha256(manifest).hexdigest())
        _skopeo(work, "copy", "--quiet", exact, f"dir:{directory}", about=reference)

        def blob(digest: str) -> Path:
            return directory / digest_hex(digest)

        copied = (directory / "manifest.json").read_bytes()
        if manifest is not None and copied != manifest:
            raise ImageError(f"{reference} changed while it was copied: try again")
        return OciImage(blob, copied, index, policy, lambda: shutil.rmtree(directory, ignore_errors=True))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def push(directory: Path, reference: str, work: Path) -> None:
    """Copies the image in a directory of skopeo's own kind to a registry, unchanged.

    Raises HostError without skopeo, ImageError if it fails.
    """
    if shutil.which("skopeo") is None:
        raise HostError(f"skopeo is needed to write {reference} and is not installed: apt-get install skopeo")
    _skopeo(work, "copy", "--quiet", "--preserve-digests", f"dir:{directory}", reference, about=reference, verb="write")


def recompressed(archive: Iterator[bytes], level: int, work: Path) -> Iterator[bytes]:
    """Yields the gzip stream that skopeo makes of a layer's archive; level 0 is its default. Raises ImageError."""
    with tempfile.TemporaryDirectory(prefix="recompress-", dir=work) as name:
        source, made = Path(name, "source"), Path(name, "made")
        source.mkdir()
        state, size = sha256(), 0
        with open(source / "layer", "wb") as file:
            for piece in archive:
                state.update(piece)
                size += len(piece)
                file.write(piece)
        layer = state.hexdigest()
        (source / "layer").rename(source / layer)
        config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]}}).encode()
        described = sha256(config).hexdigest()
        (source / described).write_bytes(config)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": OCI_CONFIG,
                "digest": f"sha256:{described}",
                "size": len(config),
            },
            "layers": [{"mediaType": OCI_LAYER, "digest": f"sha256:{layer}", "size": size}],
        }
        (source / "manifest.json").write_text(json.dumps(manifest))
        chosen = ("--dest-compress-level", str(level)) if level else ()
        options = ("--quiet", "--dest-compress-format", "gzip", *chosen)
        _skopeo(work, "copy", *options, f"dir:{source}", f"oci:{made}:1", about=str(source))
        blobs = made / "blobs" / "sha256"
        top = json.loads((made / "index.json").read_text())["manifests"][0]
        copied = json.loads((blobs / digest_hex(top["digest"])).read_text())
        with open(blobs / digest_hex(copied["layers"][0]["digest"]), "rb") as file:
            while data := file.read(_PIECE_BYTES):
                yield data


def _look_up(reference: str, platform: Platform, work: Path, warn: Warn) -> tuple[bytes, bytes | None]:
    """Returns the manifest for a platform, and the index that lists it, which skopeo's own choice would not copy."""

    def read(descriptor: Descriptor) -> bytes:
        exact = _by_digest(reference, descriptor.digest)
        data = _skopeo(work, "inspect", "--raw", exact, about=reference)
        check(data, descriptor)
        return data

    def config(descriptor: Descriptor) -> bytes:
        exact = _by_digest(reference, descriptor.digest)
        return _skopeo(work, "inspect", "--raw", "--config", exact, about=reference)

    top = _skopeo(work, "inspect", "--raw", reference, about=reference)
    return select(top, "", Documents(read, config), platform, warn)


def _by_digest(reference: str, digest: str) -> str:
    """Returns a registry's reference with its tag or digest replaced by `digest`; a port is no tag."""
    name = reference.removeprefix(_REGISTRY).partition("@")[0]
    host, slash, last = name.rpartition("/")
    return f"{_REGISTRY}{host}{slash}{last.partition(':')[0]}@{digest}"


def _skopeo(work: Path, *arguments: str, about: str, verb: str = "read") -> bytes:
    done = subprocess.run(
        ["skopeo", "--tmpdir", str(work), *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        raise ImageError(f"skopeo could not {verb} {about}: {_reason(done.stderr, done.returncode)}")
    return done.stdout


def _reason(stderr: bytes, status: int) -> str:
    """Returns the last message of skopeo, without time and level."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    if not lines:
        return f"exit status {status}"
    message = _MESSAGE.search(lines[-1])
    return re.sub(r"\\(.)", r"\1", message[1]) if message else lines[-1]
