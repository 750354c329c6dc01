"""Copies images with skopeo: from and to registries, with its credentials, and from a docker daemon.

A registry is asked for the manifest first, and then for those layers alone that are needed: skopeo copies to an OCI layout, and
leaves out the blobs that are there. It would rewrite docker's manifests for that, but nobody reads what it writes: the manifest
is what the registry gave, so the digest that people know stays.
"""

import ipaddress
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from blockmap.errors import HostError, ImageError
from blockmap.image.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from blockmap.image.oci import Descriptor, Documents, OciImage, check, describe, digest_hex, parse, select
from blockmap.image.platforms import Platform
from blockmap.image.tolerance import UnpackPolicy, Warn

REGISTRY = "docker://"
"""How the name of an image in a registry begins."""
DAEMON = "docker-daemon:"
"""How the name of an image of the local docker begins."""
_PIECE_BYTES = 1 << 20
_NO_TLS = b"server gave HTTP response to HTTPS client"
_MESSAGE = re.compile(r'\bmsg="((?:[^"\\]|\\.)*)"')


Stored = Callable[[str], bytes | None]
"""Returns the document with a digest like `sha256:HEX` that need not be asked for again, None for any other."""


def open_registry(
    reference: str,
    platform: Platform,
    work: Path,
    policy: UnpackPolicy | None = None,
    stored: Stored = lambda digest: None,
) -> OciImage:
    """Opens an image of a registry, whose layers come when they are needed, to a directory below `work` until it is closed.

    Two requests, where `stored` has what the manifest or index names. Raises HostError without skopeo, ImageError if it fails or
    nothing fits the platform.
    """
    _need_skopeo("read", reference)
    policy = policy or UnpackPolicy()
    manifest, index = _look_up(reference, platform, work, policy.warn, stored)
    exact = _by_digest(reference, "sha256:" + sha256(manifest).hexdigest())
    directory = Path(tempfile.mkdtemp(prefix="image-", dir=work))
    blobs = directory / "blobs" / "sha256"

    def blob(digest: str) -> Path:
        return blobs / digest_hex(digest)

    def fetch(below: list[Descriptor], needed: list[Descriptor]) -> None:
        wanted = {each.digest for each in needed}
        unneeded = [(blob(each.digest), each.size or 0) for each in below if each.digest not in wanted]
        try:
            for place, size in unneeded:
                place.touch()
                os.truncate(place, size)  # a blob that is there is not asked for
            shared = ("--dest-shared-blob-dir", str(directory / "blobs"), "--dest-oci-accept-uncompressed-layers")
            own = _tls("--src-tls-verify", reference)
            _skopeo(work, "copy", "--quiet", *own, *shared, exact, f"oci:{directory / 'copied'}:1", about=reference)
        finally:
            for place, _ in unneeded:
                place.unlink(missing_ok=True)

    try:
        blobs.mkdir(parents=True)
        described = describe(parse(manifest, "the manifest").get("config"))
        config = stored(described.digest)
        blob(described.digest).write_bytes(config or _config(exact, reference, work))
        return OciImage(blob, manifest, index, policy, lambda: shutil.rmtree(directory, ignore_errors=True), fetch)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def open_daemon(reference: str, work: Path, policy: UnpackPolicy | None = None) -> OciImage:
    """Copies an image of a docker daemon into a directory below `work`, and opens it; closing the image removes the copy.

    The directory is of skopeo's own kind, which keeps the manifest as it is. Raises HostError without skopeo, ImageError if it
    fails.
    """
    _need_skopeo("read", reference)
    directory = Path(tempfile.mkdtemp(prefix="image-", dir=work))
    try:
        _skopeo(work, "copy", "--quiet", reference, f"dir:{directory}", about=reference)
        return OciImage(
            lambda digest: directory / digest_hex(digest),
            (directory / "manifest.json").read_bytes(),
            None,
            policy or UnpackPolicy(),
            lambda: shutil.rmtree(directory, ignore_errors=True),
        )
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def list_tags(reference: str, work: Path) -> list[str]:
    """Returns the tags of a repository in a registry, sorted. Raises HostError without skopeo, ImageError if it fails."""
    _need_skopeo("read", reference)
    said = _skopeo(work, "list-tags", *_tls("--tls-verify", reference), reference, about=reference)
    found = parse(said, f"what skopeo says of {reference}").get("Tags")
    return sorted(tag for tag in found or [] if isinstance(tag, str))


def push(directory: Path, reference: str, work: Path) -> None:
    """Copies the image in a directory of skopeo's own kind to a registry, unchanged.

    Raises HostError without skopeo, ImageError if it fails.
    """
    _need_skopeo("write", reference)
    options = ("--quiet", "--preserve-digests", *_tls("--dest-tls-verify", reference))
    _skopeo(work, "copy", *options, f"dir:{directory}", reference, about=reference, verb="write")


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


def _look_up(reference: str, platform: Platform, work: Path, warn: Warn, stored: Stored) -> tuple[bytes, bytes | None]:
    """Returns the manifest for a platform, and the index that lists it, which skopeo's own choice would not copy."""

    def read(descriptor: Descriptor) -> bytes:
        data = stored(descriptor.digest)
        if data is None:
            data = _inspect(_by_digest(reference, descriptor.digest), reference, work)
        check(data, descriptor)
        return data

    def config(descriptor: Descriptor) -> bytes:
        return _config(_by_digest(reference, descriptor.digest), reference, work)

    return select(_inspect(reference, reference, work), "", Documents(read, config), platform, warn)


def _inspect(exact: str, reference: str, work: Path) -> bytes:
    """Returns a manifest or index as the registry has it: two requests, of which one asks how to log in."""
    return _skopeo(work, "inspect", "--raw", *_tls("--tls-verify", reference), exact, about=reference)


def _config(exact: str, reference: str, work: Path) -> bytes:
    """Returns the configuration of the image with a manifest."""
    return _skopeo(work, "inspect", "--raw", "--config", *_tls("--tls-verify", reference), exact, about=reference)


def _tls(option: str, reference: str) -> tuple[str, ...]:
    """Returns the option by which a registry on this host needs no certificate, nor TLS, as docker takes it."""
    host = reference.removeprefix(REGISTRY).partition("/")[0]
    name = re.sub(r":[0-9]+\Z", "", host).strip("[]")
    is_here = name == "localhost"
    with suppress(ValueError):
        is_here = ipaddress.ip_address(name).is_loopback
    return (f"{option}=false",) if is_here else ()


def _need_skopeo(verb: str, reference: str) -> None:
    if shutil.which("skopeo") is None:
        raise HostError(f"skopeo is needed to {verb} {reference} and is not installed: apt-get install skopeo")


def _by_digest(reference: str, digest: str) -> str:
    """Returns a registry's reference with its tag or digest replaced by `digest`; a port is no tag."""
    name = reference.removeprefix(REGISTRY).partition("@")[0]
    host, slash, last = name.rpartition("/")
    return f"{REGISTRY}{host}{slash}{last.partition(':')[0]}@{digest}"


def _skopeo(work: Path, *arguments: str, about: str, verb: str = "read") -> bytes:
    done = subprocess.run(
        ["skopeo", "--tmpdir", str(work), *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode and _NO_TLS in done.stderr:
        host = about.removeprefix(REGISTRY).partition("/")[0]
        raise ImageError(
            f'the registry at {host} does not speak TLS: allow it with `[[registry]]`, `location = "{host}"` and '
            "`insecure = true` in /etc/containers/registries.conf.d/NAME.conf"
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
