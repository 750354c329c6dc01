"""Opens the SOURCE that a person types."""

from collections.abc import Callable
from pathlib import Path

from blockmap.errors import ImageError, UsageError
from blockmap.filesystem.member import ImageSource
from blockmap.image.archive import STANDARD_INPUT, DockerArchive, open_oci_archive
from blockmap.image.directory import Directory
from blockmap.image.disk_image import DiskSource
from blockmap.image.oci import open_layout
from blockmap.image.platforms import Platform, parse_platform
from blockmap.image.skopeo import open_remote
from blockmap.image.tolerance import UnpackPolicy

FORMS = (
    "oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], docker-daemon:REF, docker://REF, a directory, or a "
    "disk image"
)


def open_source(
    text: str,
    *,
    platform: str | None,
    work: Path,
    warn: Callable[[str], None] = lambda text: None,
    most: int | None = None,
) -> ImageSource | DiskSource:
    """Opens the image that `text` names; its temporary files are below `work` until it is closed.

    `warn` is told of what is left out or changed, also while layers are read; an image that unpacks to more than `most` bytes
    is refused then. Raises UsageError, ImageError or HostError.
    """
    chosen = parse_platform(platform)
    try:
        return _open(text, chosen, work, UnpackPolicy(warn, most))
    except OSError as error:  # a path that cannot even be examined
        raise ImageError(f"cannot read {text[:200]!r}: {error.strerror or error}") from error


def _open(text: str, platform: Platform, work: Path, policy: UnpackPolicy) -> ImageSource | DiskSource:
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "oci":
        return open_layout(*_split(rest), platform, policy)
    if colon and scheme == "docker-archive":
        return DockerArchive(*_split(rest, stdin=True), work, policy)
    if colon and scheme == "oci-archive":
        return open_oci_archive(*_split(rest, stdin=True), platform, work, policy)
    if text == "-":
        raise UsageError(f"say what comes on standard input: docker-archive:- or oci-archive:-; {FORMS} are understood")
    if text.startswith("docker://") or (colon and scheme == "docker-daemon"):
        if not rest.strip("/"):
            raise UsageError(f"{text!r} names no image: {FORMS} are understood")
        return open_remote(text, platform, work, policy)
    path = Path(text)
    if not text or "\0" in text or (colon and not path.exists()):
        raise UsageError(f"{text!r} is not understood as a source, and no such file exists: {FORMS} are understood")
    if path.is_dir():
        if (path / "oci-layout").is_file():
            raise UsageError(f"{text} is an OCI image layout: to import an image of it, say oci:{text}")
        return Directory(path, policy.warn)
    if path.is_file():
        return DiskSource(path, work)
    if not path.exists():
        raise ImageError(f"there is no {text}: {FORMS} are understood")
    raise UsageError(f"{text} is neither a directory nor a file: {FORMS} are understood")


def _split(text: str, stdin: bool = False) -> tuple[Path, str | None]:
    """Splits `PATH[:TAG]` behind the longest path that exists, which may have colons of its own, or "-" with `stdin`."""
    if not text or "\0" in text:
        raise UsageError(f"{text!r} names no file: {FORMS} are understood")
    first, _, behind = text.partition(":")
    if stdin and first == str(STANDARD_INPUT):
        return STANDARD_INPUT, behind or None
    path, rest = text, None
    while not Path(path).exists():
        path, colon, _ = path.rpartition(":")
        if not path:
            raise ImageError(f"there is no {text}: {FORMS} are understood")
        rest = text[len(path) + len(colon) :]
    if rest == "":
        raise UsageError(f"{text!r} ends in a colon: a tag is missing, or the colon is one too many")
    return Path(path), rest
