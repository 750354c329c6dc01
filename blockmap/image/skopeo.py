"""Copies images with skopeo: from registries, with its credentials, and from a docker daemon.

Images are copied to skopeo's own kind of directory, not to an OCI layout, for which skopeo would rewrite docker's
manifests: the digest that people know would be lost.
"""

import re
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

from blockmap.errors import HostError, ImageError
from blockmap.image.oci import Descriptor, Documents, OciImage, check, digest_hex, select
from blockmap.image.platforms import Platform
from blockmap.image.tolerance import UnpackPolicy, Warn

_REGISTRY = "docker://"
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


def _skopeo(work: Path, *arguments: str, about: str) -> bytes:
    done = subprocess.run(
        ["skopeo", "--tmpdir", str(work), *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        raise ImageError(f"skopeo could not read {about}: {_reason(done.stderr, done.returncode)}")
    return done.stdout


def _reason(stderr: bytes, status: int) -> str:
    """Returns the last message of skopeo, without time and level."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    if not lines:
        return f"exit status {status}"
    message = _MESSAGE.search(lines[-1])
    return re.sub(r"\\(.)", r"\1", message[1]) if message else lines[-1]
