"""Images as `docker save` writes them: a tar archive with manifest.json, a configuration, and archives of layers."""

import gzip
import io
import json
import os
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from blockmap.errors import ImageError, UsageError
from blockmap.image.layer import BlobLayer, chain_ids
from blockmap.image.member import Layer
from blockmap.image.oci import config_diff_ids

_MAX_DOCUMENT = 8 << 20


class DockerArchive:
    """An image in a docker archive (a Source): it has a configuration, but no manifest."""

    manifest: bytes | None = None
    index: bytes | None = None

    def __init__(self, path: Path, reference: str | None, work: Path) -> None:
        self._path = _plain(path, work)
        try:
            with tarfile.open(self._path, "r:") as archive:
                self._members = {os.path.normpath(member.name): member for member in archive}
        except (OSError, tarfile.TarError) as error:
            raise ImageError(f"{path} is not a docker archive, or is truncated: {error}") from error
        described = self._choose(reference, path)
        try:
            self.config = self._read(str(described["Config"]))
            names = list(map(str, described["Layers"]))
        except (KeyError, TypeError) as error:
            raise ImageError(f"the manifest.json of {path} lacks {error}") from error
        diff_ids = config_diff_ids(self.config)
        if len(diff_ids) != len(names):
            raise ImageError(
                f"{path} has {len(names)} layers, but its configuration lists {len(diff_ids)}: it is damaged"
            )
        self.layers: list[Layer] = []
        for name, diff_id, chain in zip(names, diff_ids, chain_ids(diff_ids), strict=True):
            member = self._find(name)
            self.layers.append(
                BlobLayer(name, lambda member=member: self._open(member), member.size, None, diff_id, chain)  # type: ignore[misc]
            )

    def close(self) -> None:
        """Nothing is open between layers."""

    def _choose(self, reference: str | None, path: Path) -> Any:
        try:
            images = json.loads(self._read("manifest.json"))
        except ValueError as error:
            raise ImageError(f"the manifest.json of {path} is not JSON: {error}") from error
        if not isinstance(images, list) or not all(
            isinstance(image, dict) and isinstance(image.get("RepoTags") or [], list) for image in images
        ):
            raise ImageError(f"the manifest.json of {path} lists no images")
        tagged = [(image, list(map(str, image.get("RepoTags") or []))) for image in images]
        tags = [tag for _, own in tagged for tag in own]
        if reference is not None:
            images = [image for image, own in tagged if reference in own]
        if len(images) != 1:
            raise UsageError(
                f"{path} has {len(images)} images{f' called {reference}' if reference else ''}, "
                f"tags: {', '.join(tags) or 'none'}; name one as docker-archive:FILE:REPO:TAG"
            )
        return images[0]

    def _find(self, name: str) -> tarfile.TarInfo:
        for _ in range(8):
            member = self._members.get(os.path.normpath(name))
            if member is None:
                raise ImageError(f"{self._path} lacks {name}: it is truncated or damaged, get it again")
            if not member.issym():
                return member
            name = os.path.join(os.path.dirname(member.name), member.linkname)
        raise ImageError(f"{self._path}: {name} leads through too many symlinks")

    def _read(self, name: str) -> bytes:
        member = self._find(name)
        if member.size > _MAX_DOCUMENT:
            raise ImageError(
                f"{name} of {self._path} is too long for a document: {_MAX_DOCUMENT} bytes at most are read"
            )
        with self._open(member) as part:
            return part.read()

    def _open(self, member: tarfile.TarInfo) -> BinaryIO:
        return io.BufferedReader(_Part(self._path, member.offset_data, member.size))


class _Part(io.RawIOBase):
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


def _plain(path: Path, work: Path) -> Path:
    """The archive itself, or a decompressed copy of a gzipped one: layers are read in the order of the manifest."""
    try:
        with open(path, "rb") as file:
            if file.read(2) != b"\x1f\x8b":
                return path
        copy = work / "docker-archive.tar"
        with gzip.open(path, "rb") as packed, open(copy, "wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        return copy
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"cannot read {path}: {error}") from error
