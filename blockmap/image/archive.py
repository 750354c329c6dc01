"""Images as `docker save` writes them: a tar archive with manifest.json, a configuration, and archives of layers."""

import io
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, cast

from isal import igzip, igzip_lib

from blockmap.errors import ImageError, UsageError
from blockmap.filesystem.member import Layer
from blockmap.image.layer import BlobLayer, chain_ids
from blockmap.image.oci import config_diff_ids

_MAX_DOCUMENT = 8 << 20
_MAX_SYMLINKS = 8
# tarfile raises errors of its own parsing for a forged header.
_DAMAGED = (
    OSError, EOFError, tarfile.TarError, ValueError, OverflowError, RecursionError,
    cast(type[Exception], igzip_lib.IsalError),
)  # fmt: skip


class DockerArchive:
    """An image in a docker archive (an ImageSource); it has a configuration, but no manifest."""

    manifest: bytes | None = None
    index: bytes | None = None

    def __init__(self, path: Path, reference: str | None, work: Path) -> None:
        self._name = path
        self._path = path
        self._copy: Path | None = None
        try:
            self._unpack(work)
            self._open_image(reference)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._copy is not None:
            self._copy.unlink(missing_ok=True)

    def _unpack(self, work: Path) -> None:
        """Makes a plain copy of a gzipped archive: layers are read in the order of the manifest, which may be any."""
        try:
            with open(self._name, "rb") as file:
                if file.read(2) != b"\x1f\x8b":
                    return
            descriptor, name = tempfile.mkstemp(prefix="docker-archive-", dir=work)
            self._path = self._copy = Path(name)
            with open(descriptor, "wb") as out, igzip.open(self._name, "rb") as packed:  # type: ignore[no-untyped-call]
                shutil.copyfileobj(packed, out, 1 << 20)
        except _DAMAGED as error:
            raise ImageError(f"cannot read {self._name}: {error}") from error

    def _open_image(self, reference: str | None) -> None:
        try:
            with tarfile.open(self._path, "r:") as archive:
                self._members = {os.path.normpath(member.name): member for member in archive}
        except _DAMAGED as error:
            raise ImageError(f"{self._name} is not a docker archive, or is truncated: {error}") from error
        if "manifest.json" not in self._members:
            raise ImageError(f"{self._name} is not a docker archive: it has no manifest.json")
        described = self._choose(reference)
        config, names = described.get("Config"), described.get("Layers") or []
        if not isinstance(config, str) or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ImageError(f"the manifest.json of {self._name} names no configuration, or no layers: it is damaged")
        self.config = self._read(config)
        diff_ids = config_diff_ids(self.config)
        if len(diff_ids) != len(names):
            raise ImageError(
                f"{self._name} has {len(names)} layers, but its configuration lists {len(diff_ids)}: it is damaged"
            )
        self.layers: list[Layer] = []
        for name, diff_id, chain in zip(names, diff_ids, chain_ids(diff_ids), strict=True):
            member = self._find(name)
            self.layers.append(
                BlobLayer(name, lambda member=member: self._open(member), member.size, None, diff_id, chain)  # type: ignore[misc]
            )

    def _choose(self, reference: str | None) -> dict[str, Any]:
        try:
            images = json.loads(self._read("manifest.json"))
        except (ValueError, RecursionError) as error:
            raise ImageError(f"the manifest.json of {self._name} is not JSON: {error}") from error
        if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
            raise ImageError(f"the manifest.json of {self._name} lists no images")
        tags = [_tags(image) for image in images]
        found = images
        if reference is not None:
            wanted = _full(reference)
            found = [image for image, own in zip(images, tags, strict=True) if wanted in (_full(tag) for tag in own)]
        if len(found) != 1:
            called = "" if reference is None else f" called {reference!r}"
            known = ", ".join(sorted(tag for own in tags for tag in own)) or "none"
            raise UsageError(
                f"{self._name} has {len(found)} images{called}; its tags: {known}; name one as docker-archive:FILE:REPO:TAG"
            )
        image: dict[str, Any] = found[0]
        return image

    def _find(self, name: str) -> tarfile.TarInfo:
        at = name
        for _ in range(_MAX_SYMLINKS):
            member = self._members.get(os.path.normpath(at))
            if member is None:
                raise ImageError(f"{self._name} lacks {name}: it is truncated or damaged, get it again")
            if member.isfile() and not member.issparse():
                return member
            if not member.issym():
                raise ImageError(f"{self._name}: {name} is not an ordinary file: the archive is damaged")
            at = os.path.join(os.path.dirname(member.name), member.linkname)
        raise ImageError(f"{self._name}: {name} leads through more than {_MAX_SYMLINKS} symlinks")

    def _read(self, name: str) -> bytes:
        member = self._find(name)
        if member.size > _MAX_DOCUMENT:
            raise ImageError(
                f"{name} of {self._name} is too long for a document: {_MAX_DOCUMENT} bytes at most are read"
            )
        try:
            with self._open(member) as part:
                return part.read()
        except OSError as error:
            raise ImageError(f"cannot read {self._name}: {error}") from error

    def _open(self, member: tarfile.TarInfo) -> BinaryIO:
        return io.BufferedReader(_ArchivePart(self._path, member.offset_data, member.size))


def _tags(image: dict[str, Any]) -> list[str]:
    tags = image.get("RepoTags") or []
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def _full(reference: str) -> str:
    """Returns a reference with docker's defaults filled in, so that `redis` finds `docker.io/library/redis:latest`."""
    name = reference.removeprefix("docker.io/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


class _ArchivePart(io.RawIOBase):
    """A range of a file."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._file.seek(start)
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
