"""Images in archives: what `docker save` writes (a tar with manifest.json, a configuration, and archives of layers), and OCI
layouts in a tar. Either may be compressed, or come from standard input."""

import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from blockmap.errors import ImageError, UsageError
from blockmap.filesystem.member import Layer, MemberKind
from blockmap.image import tar
from blockmap.image.compression import DAMAGED, decompressor, reason
from blockmap.image.layer import BlobLayer, chain_ids
from blockmap.image.oci import OciImage, config_diff_ids, open_layout
from blockmap.image.platforms import Platform
from blockmap.image.tolerance import UnpackPolicy

STANDARD_INPUT = Path("-")
_MAX_DOCUMENT = 4 << 20
_MAX_LINKS = 8
_MAX_MEMBERS = 100_000
"""Members of a docker archive, which has three or four for each layer."""
_MAX_HEADER = 1 << 16
_MAX_HEADERS = 16 << 20
"""Bytes of one header with a long name, and of the names of all members."""
_PIECE_BYTES = 1 << 20
# tarfile raises errors of its own parsing for a forged header.
_NO_TAR = (OSError, EOFError, tarfile.TarError, ValueError, OverflowError, RecursionError)
_LAYOUT = re.compile(rb"oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}")


class DockerArchive:
    """An image in a docker archive (an ImageSource); it has a configuration, but no manifest."""

    manifest: bytes | None = None
    index: bytes | None = None

    def __init__(
        self,
        path: Path,
        reference: str | None,
        work: Path,
        policy: UnpackPolicy | None = None,
        copy: Path | None = None,
    ) -> None:
        """With `copy`, that is the archive at `path`, uncompressed, and deleted when the image is closed."""
        self._name = _called(path)
        self._path = path if copy is None else copy
        self._policy = policy or UnpackPolicy()
        self._copy = copy
        try:
            if copy is None:
                self._unpack(work)
            self._open_image(reference)
        except BaseException:
            self.close()
            raise

    def need(self, first: int) -> None:
        """Does nothing, since the archive is here."""

    def close(self) -> None:
        if self._copy is not None:
            self._copy.unlink(missing_ok=True)

    def _unpack(self, work: Path) -> None:
        """Makes a plain copy unless it is one: layers are read in the order of the manifest, which may be any."""
        if self._path != STANDARD_INPUT:
            with _open(self._path) as file:
                if _decompressed(file, self._name) is file:
                    return
        self._path = self._copy = _uncompressed_copy(self._path, work, self._policy)

    def _open_image(self, reference: str | None) -> None:
        try:
            self._members: dict[str, tarfile.TarInfo] = {}
            held = 0
            with _BoundedFile(self._path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None and len(self._members) <= _MAX_MEMBERS:
                    self._members[os.path.normpath(member.name)] = member
                    archive.members.clear()  # type: ignore[attr-defined] # it would keep all
                    held += len(member.name) + len(member.linkname)
                    held += sum(len(key) + len(value) for key, value in member.pax_headers.items())
                    if held > _MAX_HEADERS:
                        raise ValueError(f"the names of its members take more than {_MAX_HEADERS >> 20} MiB")
        except _NO_TAR as error:
            raise ImageError(f"{self._name} is not a docker archive, or is truncated: {error}") from error
        if len(self._members) > _MAX_MEMBERS:
            raise ImageError(f"{self._name} is not a docker archive: it has more than {_MAX_MEMBERS:,} members")
        if "manifest.json" not in self._members:
            layout = f": say oci-archive:{self._name}" if "oci-layout" in self._members else ""
            raise ImageError(f"{self._name} is not a docker archive, it has no manifest.json{layout}")
        described = self._choose(reference)
        self.tags = _tags(described)
        """The names that it has in the archive."""
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
            opened = partial(self._open, member)
            self.layers.append(BlobLayer(name, opened, member.size, None, diff_id, chain, self._policy))

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
        for _ in range(_MAX_LINKS):
            member = self._members.get(os.path.normpath(at))
            if member is None:
                raise ImageError(f"{self._name} lacks {name}: it is truncated or damaged, get it again")
            if member.isfile() and not member.issparse():
                return member
            if member.issparse():
                raise ImageError(f"{self._name}: {name} is a sparse member: make the archive without --sparse")
            if member.islnk():
                at = member.linkname  # from the root of the archive
            elif member.issym():
                at = os.path.join(os.path.dirname(member.name), member.linkname)
            else:
                raise ImageError(f"{self._name}: {name} is not an ordinary file: the archive is damaged")
        raise ImageError(f"{self._name}: {name} leads through more than {_MAX_LINKS} links")

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


def open_standard_input(platform: Platform, work: Path, policy: UnpackPolicy) -> DockerArchive | OciImage:
    """Opens the only image of what comes on standard input: what `docker save` wrote, or an OCI layout in a tar."""
    copy = _uncompressed_copy(STANDARD_INPUT, work, policy)
    try:
        names = _layout_names(copy)
        if "manifest.json" in names:
            return DockerArchive(STANDARD_INPUT, None, work, policy, copy)
        if "oci-layout" not in names:
            raise ImageError(
                "what came on standard input is neither what `docker save` wrote nor an OCI layout in a tar: for files, unpack "
                "them, and import the directory"
            )
        found = open_oci_archive(copy, None, platform, work, policy, _called(STANDARD_INPUT))
    except BaseException:
        copy.unlink(missing_ok=True)
        raise
    copy.unlink()
    return found


def open_oci_archive(
    path: Path,
    tag: str | None,
    platform: Platform,
    work: Path,
    policy: UnpackPolicy | None = None,
    name: str | None = None,
) -> OciImage:
    """Opens an image of an OCI layout in a tar, which is unpacked below `work` until the image is closed; `name` is what a person
    calls it, if that is not its path."""
    policy = policy or UnpackPolicy()
    name = name or _called(path)
    directory = Path(tempfile.mkdtemp(prefix="oci-archive-", dir=work))
    try:
        _unpack_layout(path, directory, policy)
        if not (directory / "oci-layout").is_file():
            raise ImageError(
                f"{name} is not an OCI layout in a tar, it has no file oci-layout: what docker save wrote is docker-archive:{name}"
            )
        return open_layout(
            directory,
            tag,
            platform,
            policy,
            f"oci-archive:{name}",
            lambda: shutil.rmtree(directory, ignore_errors=True),
        )
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _unpack_layout(path: Path, directory: Path, policy: UnpackPolicy) -> None:
    """Unpacks those files of a tar that belong to an OCI layout."""
    (directory / "blobs" / "sha256").mkdir(parents=True)
    taken = 0
    with _open(path) as file:
        pieces = _pieces(_decompressed(file, _called(path)), _called(path))
        for member, contents in tar.members(pieces, lambda data: None):
            if not _LAYOUT.fullmatch(member.path):
                continue
            target = directory / member.path.decode()
            first = directory / member.target.decode() if _LAYOUT.fullmatch(member.target) else target
            target.unlink(missing_ok=True)
            taken += member.size
            policy.check(taken)
            if member.kind is MemberKind.FILE:
                with open(target, "wb") as out:
                    out.writelines(contents)
            elif member.kind is MemberKind.HARDLINK and first.is_file():
                os.link(first, target)


def _uncompressed_copy(path: Path, work: Path, policy: UnpackPolicy) -> Path:
    """Returns a plain copy of an archive, in a new file below `work`. Raises ImageError."""
    name = _called(path)
    descriptor, copy = tempfile.mkstemp(prefix="docker-archive-", dir=work)
    try:
        with open(descriptor, "wb") as out, _open(path) as file:
            for piece in _pieces(_decompressed(file, name), name):
                policy.check(out.tell() + len(piece))
                out.write(piece)
    except BaseException:
        os.unlink(copy)
        raise
    return Path(copy)


def _layout_names(path: Path) -> set[str]:
    """Returns those names of members by which a docker archive and an OCI layout are known."""
    names = set()
    with suppress(*_NO_TAR), _BoundedFile(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            names.add(os.path.normpath(member.name))
            names &= {"manifest.json", "oci-layout"}
            archive.members.clear()  # type: ignore[attr-defined] # it would keep all
    return names


def _called(path: Path) -> str:
    return "standard input" if path == STANDARD_INPUT else str(path)


def _open(path: Path) -> io.BufferedReader:
    try:
        return open(0, "rb", closefd=False) if path == STANDARD_INPUT else open(path, "rb")
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error


def _decompressed(file: io.BufferedReader, name: str) -> Any:
    """Returns a file decompressed; the file itself if it is not compressed."""
    try:
        return decompressor(file)
    except (*DAMAGED, ImageError) as error:
        raise ImageError(f"cannot read {name}: {reason(error)}") from error


def _pieces(opened: Any, name: str) -> Iterator[bytes]:
    try:
        while piece := opened.read(_PIECE_BYTES):
            yield piece
    except DAMAGED as error:
        raise ImageError(f"cannot read {name}: {reason(error)}") from error


def _tags(image: dict[str, Any]) -> list[str]:
    tags = image.get("RepoTags") or []
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def _full(reference: str) -> str:
    """Returns a reference with docker's defaults filled in, so that `redis` finds `docker.io/library/redis:latest`."""
    name = reference.removeprefix("docker.io/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


class _BoundedFile(io.FileIO):
    """A file of which tarfile reads no long header."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_HEADER:
            raise ValueError(f"a header of {size} bytes")
        return super().read(size)


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
