"""Does the same change by other means: an overlay whose upper directory becomes a tar that is imported, and podman commit."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from hashlib import file_digest, sha256
from pathlib import Path

from blockmap.bench.coldstart.blockmap_server import BLOCKMAP
from blockmap.bench.coldstart.processes import mounted
from blockmap.errors import HostError
from blockmap.host import tools

_TAG = "localhost/bench:1"
_MEDIA = "application/vnd.oci.image.{}"
_ARCHITECTURE = "amd64"


class OverlayPeer:
    """An overlay over one directory, whose upper directory is archived and imported."""

    name = "overlay diff, tar, import"

    def __init__(self, work: Path, store: Path) -> None:
        self._work, self._store = work, store
        self._number = 0

    @contextlib.contextmanager
    def changed(self, data: bytes) -> Iterator[None]:
        """Keeps an overlay mounted to which one new file was written."""
        self._number += 1
        folder = self._work / f"overlay-{self._number}"
        for each in ("lower", "upper", "work", "root"):
            (folder / each).mkdir(parents=True)
        options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
        with mounted(folder / "root", "-t", "overlay", "-o", options, "blockmap-bench"):
            _write(folder / "root" / "changed", data)
            self._upper, self._image = folder / "upper", folder / "image"
            yield
        shutil.rmtree(folder)

    def commit_s(self) -> float:
        """Returns the seconds until the change is in the store."""
        began = time.monotonic()
        blobs = self._image / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        layer = blobs / "layer"
        tools.run("tar", "-cf", str(layer), "-C", str(self._upper), ".")
        with open(layer, "rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        layer.rename(blobs / digest)
        config = _blob(blobs, {"architecture": _ARCHITECTURE, "os": "linux", "config": {},
                               "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]}}, "config.v1")  # fmt: skip
        tar = {"mediaType": _MEDIA.format("layer.v1.tar"), "digest": f"sha256:{digest}",
               "size": (blobs / digest).stat().st_size}  # fmt: skip
        made = _blob(blobs, {"schemaVersion": 2, "config": config, "layers": [tar]}, "manifest.v1")
        (self._image / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [made]}))
        (self._image / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        name = f"peer:{self._number}"
        command = [
            "import",
            f"oci:{self._image}",
            name,
            "--store",
            str(self._store),
            "--cache",
            str(self._work / "cache"),
        ]
        tools.run(*BLOCKMAP, *command, "--quiet", "--platform", f"linux/{_ARCHITECTURE}")
        return time.monotonic() - began


class PodmanPeer:
    """A container of a small image in a storage of its own, that is committed."""

    name = "podman commit"

    def __init__(self, work: Path) -> None:
        self._base = [
            "--root",
            str(work / "podman"),
            "--runroot",
            str(work / "podman-run"),
            "--storage-driver",
            "overlay",
        ]
        root = work / "podman-image"
        root.mkdir()
        (root / "etc").mkdir()
        tools.run("tar", "-cf", str(work / "podman.tar"), "-C", str(root), ".")
        self._run("import", "--quiet", str(work / "podman.tar"), _TAG)

    @contextlib.contextmanager
    def changed(self, data: bytes) -> Iterator[None]:
        """Keeps a container in whose root one new file was written."""
        self._container = self._run("create", _TAG, "/none")
        try:
            _write(Path(self._run("mount", self._container)) / "changed", data)
            self._run("umount", self._container)
            yield
        finally:
            self._run("rm", "--force", self._container)

    def commit_s(self) -> float:
        """Returns the seconds until the change is an image of this host, which no other host sees."""
        began = time.monotonic()
        image = self._run("commit", "--quiet", self._container)
        seconds = time.monotonic() - began
        self._run("rmi", image)
        return seconds

    def close(self) -> None:
        """Removes all that podman stored."""
        with contextlib.suppress(HostError):
            self._run("system", "reset", "--force")

    def _run(self, *arguments: str) -> str:
        return tools.run("podman", *self._base, *arguments).strip()


def _blob(blobs: Path, document: dict[str, object], kind: str) -> dict[str, object]:
    """Stores a document of an OCI layout; returns its descriptor."""
    data = json.dumps(document).encode()
    name = sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"mediaType": _MEDIA.format(f"{kind}+json"), "digest": f"sha256:{name}", "size": len(data)}


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
