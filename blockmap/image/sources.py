"""Opens the SOURCE that a person types."""

from pathlib import Path

from blockmap.errors import ImageError, UsageError
from blockmap.filesystem.member import ImageSource
from blockmap.image.archive import DockerArchive
from blockmap.image.directory import Directory
from blockmap.image.disk_image import DiskSource
from blockmap.image.oci import open_layout
from blockmap.image.platforms import Platform, parse_platform
from blockmap.image.skopeo import open_remote

FORMS = "oci:DIR[:TAG], docker-archive:FILE[:REF], docker-daemon:REF, docker://REF, a directory, or a disk image"


def open_source(text: str, *, platform: str | None, work: Path) -> ImageSource | DiskSource:
    """Opens the image that `text` names; its temporary files are below `work` until it is closed.

    Raises UsageError, ImageError or HostError.
    """
    chosen = parse_platform(platform)
    try:
        return _open(text, chosen, work)
    except OSError as error:  # a path that cannot even be examined
        raise ImageError(f"cannot read {text[:200]!r}: {error.strerror or error}") from error


def _open(text: str, platform: Platform, work: Path) -> ImageSource | DiskSource:
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "oci":
        return open_layout(*_split(rest), platform)
    if colon and scheme == "docker-archive":
        return DockerArchive(*_split(rest), work)
    if text.startswith("docker://") or (colon and scheme == "docker-daemon"):
        if not rest.strip("/"):
            raise UsageError(f"{text!r} names no image: {FORMS} are understood")
        return open_remote(text, platform, work)
    path = Path(text)
    if not text or "\0" in text or (colon and not path.exists()):
        raise UsageError(f"{text!r} is not understood as a source, and no such file exists: {FORMS} are understood")
    if path.is_dir():
        if (path / "oci-layout").is_file():
            raise UsageError(f"{text} is an OCI image layout: to import an image of it, say oci:{text}")
        return Directory(path)
    if path.is_file():
        return DiskSource(path, work)
    if not path.exists():
        raise ImageError(f"there is no {text}: {FORMS} are understood")
    raise UsageError(f"{text} is neither a directory nor a file: {FORMS} are understood")


def _split(text: str) -> tuple[Path, str | None]:
    """Splits `PATH[:TAG]` behind the longest path that exists, which may have colons of its own."""
    if not text or "\0" in text:
        raise UsageError(f"{text!r} names no file: {FORMS} are understood")
    path, rest = text, None
    while not Path(path).exists():
        path, colon, _ = path.rpartition(":")
        if not path:
            raise ImageError(f"there is no {text}: {FORMS} are understood")
        rest = text[len(path) + len(colon) :]
    if rest == "":
        raise UsageError(f"{text!r} ends in a colon: a tag is missing, or the colon is one too many")
    return Path(path), rest
