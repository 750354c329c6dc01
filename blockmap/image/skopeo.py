"""Images that skopeo brings: from registries, with its credentials, and from a docker daemon."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from blockmap.errors import HostError, ImageError
from blockmap.image.oci import OciImage, digest_hex
from blockmap.image.platforms import Platform


def open_remote(reference: str, platform: Platform, work: Path) -> OciImage:
    """Copies an image into a directory below `work` as it is, and opens it; the copy ends with the image."""
    if shutil.which("skopeo") is None:
        raise HostError(f"skopeo is needed to read {reference} and is not installed: apt-get install skopeo")
    directory = Path(tempfile.mkdtemp(prefix="image-", dir=work))
    try:
        command = ["skopeo", "copy", "--quiet", "--override-os", platform.os, "--override-arch", platform.architecture]
        if platform.variant:
            command += ["--override-variant", platform.variant]
        done = subprocess.run([*command, reference, f"dir:{directory}"], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            reason = lines[-1] if lines else f"exit status {done.returncode}"
            raise ImageError(f"skopeo could not read {reference}: {reason}")

        def blob(digest: str) -> Path:
            return directory / digest_hex(digest)

        manifest = (directory / "manifest.json").read_bytes()
        return OciImage(blob, manifest, None, lambda: shutil.rmtree(directory, ignore_errors=True))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
