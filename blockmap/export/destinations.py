"""Parses the DESTINATION that a person types, and writes images there."""

import json
import os
import re
import secrets
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from blockmap import durable
from blockmap.errors import HostError, UsageError
from blockmap.image.oci import REF_NAME, parse

FORMS = "oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], or docker://REF"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_TAG = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)


class Form(Enum):
    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"
    REGISTRY = "docker"


@dataclass(frozen=True, slots=True)
class Destination:
    form: Form
    path: Path
    """The folder or file; of no meaning for a registry."""
    tag: str
    """What the image is called there: a tag, a reference with one, or a registry's reference as it was typed."""


def parse_destination(text: str, repo: str, tag: str | None) -> Destination:
    """Parses a destination for an image that is called `repo` and `tag` in the store. Raises UsageError."""
    scheme, _, rest = text.partition(":")
    if text.startswith("docker://"):
        if not rest.strip("/"):
            raise UsageError(f"{text!r} names no image: {FORMS} are understood")
        return Destination(Form.REGISTRY, Path(), text)
    try:
        form = Form(scheme)
    except ValueError:
        raise UsageError(f"{text!r} is not understood as a destination: {FORMS} are") from None
    path, colon, called = rest.partition(":")
    if not path or "\0" in path or form is Form.REGISTRY or (colon and not called):
        raise UsageError(f"{text!r} is not understood as a destination: {FORMS} are")
    if form is Form.DOCKER_ARCHIVE:
        called = called or f"{repo}:{tag or 'latest'}"
        return Destination(form, Path(path), called if ":" in called.rpartition("/")[2] else f"{called}:latest")
    called = called or tag or "latest"
    if not _TAG.fullmatch(called):
        raise UsageError(f"{called!r} is not a tag: letters, digits, '_', '.' and '-' are, 128 at most")
    if form is Form.OCI and Path(path).exists() and not _is_layout_or_empty(Path(path)):
        raise UsageError(f"{path} is there, and is no OCI image layout: name an empty or new folder")
    return Destination(form, Path(path), called)


def _is_layout_or_empty(path: Path) -> bool:
    return path.is_dir() and ((path / "oci-layout").is_file() or not any(path.iterdir()))


def blobs_folder(layout: Path) -> Path:
    """Returns the folder of a layout's blobs, which is made if it is absent. Raises HostError."""
    folder = layout / "blobs" / "sha256"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (layout / "oci-layout").write_bytes(_LAYOUT)
    except OSError as error:
        raise HostError(f"cannot write {layout}: {error.strerror}") from error
    return folder


def finish_layout(layout: Path, manifest: dict[str, Any], tag: str) -> None:
    """Gives an image in a layout its tag; what had that tag before stays without one."""
    index = layout / "index.json"
    top = parse(index.read_bytes(), str(index)) if index.exists() else {}
    others = [each for each in top.get("manifests") or [] if (each.get("annotations") or {}).get(REF_NAME) != tag]
    tagged = {**manifest, "annotations": {REF_NAME: tag}}
    whole = {"schemaVersion": 2, **top, "manifests": [*others, tagged]}
    durable.replace(index, json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode())


def pack_layout(layout: Path, file: Path) -> None:
    """Writes a layout as a tar, in which equal layouts are equal."""
    with _replaced(file) as out, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in [layout / "oci-layout", layout / "index.json", *sorted(blobs_folder(layout).iterdir())]:
            with open(path, "rb") as member:
                archive.addfile(_info(str(path.relative_to(layout)), path.stat().st_size), member)


Layer = tuple[int, Callable[[], Iterator[bytes]]]


def write_docker_archive(
    file: Path, reference: str, layers: list[Layer], config: Callable[[], bytes], config_name: Callable[[bytes], str]
) -> None:
    """Writes what `docker load` reads: archives of layers, with their sizes, then the configuration, known by then."""
    with _replaced(file) as out:
        names = []
        for number, (size, pieces) in enumerate(layers, start=1):
            names.append(f"layer-{number}.tar")
            out.write(_info(names[-1], size).tobuf(tarfile.USTAR_FORMAT if size < 1 << 33 else tarfile.GNU_FORMAT))
            for piece in pieces():
                out.write(piece)
            out.write(bytes(-size % tarfile.BLOCKSIZE))
        document = config()
        name = config_name(document)
        manifest = json.dumps([{"Config": name, "RepoTags": [reference], "Layers": names}]).encode()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for member, data in ((name, document), ("manifest.json", manifest)):
                archive.addfile(_info(member, len(data)), BytesIO(data))


@contextmanager
def _replaced(file: Path) -> Iterator[BinaryIO]:
    """Gives a file that takes the place of `file` if the block ends well. Raises HostError."""
    temporary = file.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as out:
            yield out
        os.replace(temporary, file)
    except OSError as error:
        raise HostError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info
