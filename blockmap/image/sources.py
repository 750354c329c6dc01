"""Opens the SOURCE that a person types."""

import re
from collections.abc import Callable
from pathlib import Path

from blockmap.errors import ImageError, UsageError
from blockmap.filesystem.member import ImageSource
from blockmap.format.refs import is_reference
from blockmap.image.archive import STANDARD_INPUT, DockerArchive, open_oci_archive, open_standard_input
from blockmap.image.directory import Directory
from blockmap.image.disk_image import DiskSource
from blockmap.image.oci import open_layout
from blockmap.image.platforms import Platform, parse_platform
from blockmap.image.skopeo import DAEMON, REGISTRY, Stored, open_daemon, open_registry
from blockmap.image.tolerance import UnpackPolicy

FORMS = (
    "oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], docker-daemon:REF, docker://REF, a directory, a disk image, "
    "or - for standard input"
)
_DOCKER_HUB = re.compile("docker[.]io/(?:library/)?")


def open_source(
    text: str,
    *,
    platform: str | None,
    work: Path,
    warn: Callable[[str], None] = lambda text: None,
    most: int | None = None,
    stored: Stored = lambda digest: None,
) -> ImageSource | DiskSource:
    """Opens the image that `text` names; its temporary files are below `work` until it is closed.

    `warn` is told of what is left out or changed, also while layers are read; an image that unpacks to more than `most` bytes
    is refused then; `stored` is as `open_registry` has it. Raises UsageError, ImageError or HostError.
    """
    chosen = parse_platform(platform)
    try:
        return _open(text, chosen, work, UnpackPolicy(warn, most), stored)
    except OSError as error:  # a path that cannot even be examined
        raise ImageError(f"cannot read {text[:200]!r}: {error.strerror or error}") from error


def name_of(text: str, source: ImageSource | DiskSource | None) -> str | None:
    """Returns the name that docker has for the image that `text` names, REPO[:TAG]; None where it has none, or several."""
    if text.startswith((REGISTRY, DAEMON)):
        name = _DOCKER_HUB.sub("", text.removeprefix(REGISTRY).removeprefix(DAEMON), count=1)
        return name if is_reference(name) and "@" not in name else None
    tags = source.tags if isinstance(source, DockerArchive) else []
    return tags[0] if len(tags) == 1 else None


def _open(text: str, platform: Platform, work: Path, policy: UnpackPolicy, stored: Stored) -> ImageSource | DiskSource:
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "oci":
        return open_layout(*_split(rest), platform, policy)
    if colon and scheme == "docker-archive":
        return DockerArchive(*_split(rest, stdin=True), work, policy)
    if colon and scheme == "oci-archive":
        return open_oci_archive(*_split(rest, stdin=True), platform, work, policy)
    if text == str(STANDARD_INPUT):
        return open_standard_input(platform, work, policy)
    if text.startswith((REGISTRY, DAEMON)):
        if not rest.strip("/"):
            raise UsageError(f"{text!r} names no image: {FORMS} are understood")
        if text.startswith(REGISTRY):
            return open_registry(text, platform, work, policy, stored)
        is_tagged = "@" in rest or ":" in rest.rpartition("/")[2]
        return open_daemon(text if is_tagged else f"{text}:latest", work, policy)
    path = Path(text)
    if not text or "\0" in text or (colon and not path.exists()):
        raise UsageError(
            f"{text!r} is not understood as a source, and no such file exists: {_meant(text)}{FORMS} are understood"
        )
    if path.is_dir():
        if (path / "oci-layout").is_file():
            raise UsageError(f"{text} is an OCI image layout: to import an image of it, say oci:{text}")
        return Directory(path, policy.warn)
    if path.is_file():
        return DiskSource(path, work)
    if not path.exists():
        raise ImageError(f"there is no {text}: {_meant(text)}{FORMS} are understood")
    raise UsageError(f"{text} is neither a directory nor a file: {FORMS} are understood")


def _meant(text: str) -> str:
    """Returns what to say instead of a name of docker's, which says where the image is to be sought."""
    if not is_reference(text):
        return ""
    own = _DOCKER_HUB.sub("", text, count=1)
    return f"say {REGISTRY}{text} for an image in a registry, {DAEMON}{own} for one of the local docker; "


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
