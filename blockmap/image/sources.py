"""What a person types as SOURCE, opened."""

from pathlib import Path

from blockmap.errors import ImageError, UsageError
from blockmap.image.archive import DockerArchive
from blockmap.image.directory import Directory
from blockmap.image.disk import DiskSource
from blockmap.image.member import Source
from blockmap.image.oci import open_layout
from blockmap.image.platforms import parse_platform
from blockmap.image.skopeo import open_remote

FORMS = "oci:DIR[:TAG], docker-archive:FILE[:REF], docker-daemon:REF, docker://REF, a directory, or a disk image"


def open_source(text: str, *, platform: str | None, work: Path) -> Source | DiskSource:
    """The image that `text` names; temporary files go below `work` until it is closed. UsageError, ImageError, HostError."""
    chosen = parse_platform(platform)
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "oci":
        directory, tag = _split(rest)
        return open_layout(directory, tag, chosen)
    if colon and scheme == "docker-archive":
        file, reference = _split(rest)
        return DockerArchive(file, reference, work)
    if colon and scheme in ("docker-daemon", "docker"):
        if not rest.strip("/"):
            raise UsageError(f"{text!r} names no image: {FORMS} are understood")
        return open_remote(text, chosen, work)
    if not text:
        raise UsageError(f"the source is empty: {FORMS} are understood")
    path = Path(text)
    if path.is_dir():
        if (path / "oci-layout").is_file():
            raise UsageError(f"{text} is an OCI image layout: to import an image of it, say oci:{text}")
        return Directory(path)
    if path.is_file():
        return DiskSource(path, work)
    if path.exists():
        raise UsageError(f"{text} is neither a directory nor a file: {FORMS} are understood")
    if colon:
        raise UsageError(f"{text!r} is not understood as a source, and no such file exists: {FORMS} are understood")
    raise ImageError(f"there is no {text}: {FORMS} are understood")


def _split(text: str) -> tuple[Path, str | None]:
    """A path and what follows its first colon; a path that exists may have colons of its own."""
    if text and Path(text).exists():
        return Path(text), None
    path, colon, rest = text.partition(":")
    if not path:
        raise UsageError(f"{text!r} names no file: {FORMS} are understood")
    if not Path(path).exists():
        raise ImageError(f"there is no {path}: {FORMS} are understood")
    return Path(path), rest if colon else None
