"""References that people type: names, digests and labels of images, and their form as components of keys.

The grammar is docker's, as typed: no registry is implied.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from blockmap.errors import UsageError

_DOMAIN = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*(?::[0-9]+)?"
_PATH = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPO = re.compile(rf"(?:{_DOMAIN}/)?{_PATH}(?:/{_PATH})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LABEL = re.compile(r"[a-z0-9._/-]{1,64}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MOMENT = re.compile(r"([^@{}]*)@\{([^{}]*)\}")
_AGO = re.compile(r"([0-9]{1,9}) (second|minute|hour|day|week)s? ago")
_MAX_REPO = 255

DEFAULT_LABEL: Final = "default"
"""The label of starts for which none is given."""


@dataclass(frozen=True, slots=True)
class NameEntry:
    """What a name stood for from one of its entries on."""

    n: int

    def __str__(self) -> str:
        return str(self.n)


@dataclass(frozen=True, slots=True)
class Moment:
    """What a name stood for at a time."""

    seconds: int
    """Seconds since 1970."""

    def __str__(self) -> str:
        return f"{datetime.fromtimestamp(self.seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def pinned_export(repo: str, digest: bytes) -> str:
    """Returns the export name that will always mean one version: REPO@sha256:HEX."""
    return f"{repo}@sha256:{digest.hex()}"


@dataclass(frozen=True, slots=True)
class Reference:
    """An image named by tag or by digest, and a workload of it."""

    repo: str
    tag: str | None
    digest: bytes | None
    """SHA-256 of a version, or of an OCI manifest, index or configuration."""
    label: str | None = None
    past: NameEntry | Moment | None = None
    """None for what the name stands for now."""

    def __str__(self) -> str:
        text = f"{self.repo}:{self.tag}" if self.digest is None else pinned_export(self.repo, self.digest)
        text = f"{text}@{{{self.past}}}" if self.past is not None else text
        return f"{text}+{self.label}" if self.label else text


def parse_name(text: str) -> tuple[str, str]:
    """Parses `REPO[:TAG]` into repository and tag, `latest` by default. Raises UsageError."""
    reference = parse_reference(text)
    if reference.tag is None or reference.label is not None or reference.past is not None:
        raise UsageError(f"{text!r} is not a name: REPO[:TAG] is expected, for example redis:7")
    return reference.repo, reference.tag


def is_name(repo: str, tag: str) -> bool:
    """Returns True if people can type `REPO:TAG`."""
    try:
        return parse_name(f"{repo}:{tag}") == (repo, tag)
    except UsageError:
        return False


def is_reference(text: str) -> bool:
    """Returns True if `text` is a name or digest of an image that people can type."""
    try:
        parse_reference(text)
    except UsageError:
        return False
    return True


def parse_reference(text: str, clock: Callable[[], float] = time.time) -> Reference:
    """Parses `REPO[:TAG]`, `REPO[:TAG]@{PAST}` or `REPO@sha256:HEX`, with `+LABEL` or without. Raises UsageError.

    PAST is the number of an entry as `log` shows it, a time in UTC (2026-11-20, 2026-11-20T08:30:00Z), or how long
    ago (5 minutes ago).
    """
    rest, plus, label = text.partition("+")
    if plus and (not _LABEL.fullmatch(label) or label in (".", "..") or label.startswith(".tmp-")):
        raise UsageError(
            f"{label!r} is not a label: 1 to 64 of a-z, 0-9, dot, underscore, slash and dash are expected, for example "
            "redis:7+migrate"
        )
    matched = _MOMENT.fullmatch(rest)
    past = None if matched is None else _parse_past(matched[2], clock)
    rest, at, hexadecimal = (rest if matched is None else matched[1]).partition("@")
    digest, tag = None, None
    if at:
        matched = _DIGEST.fullmatch(hexadecimal)
        if matched is None:
            raise UsageError(
                f"{text!r} has no digest after the @: sha256: and 64 lower-case hexadecimal digits are expected, or "
                "a number or a time in braces"
            )
        digest = bytes.fromhex(matched[1])
        repo = rest
    else:
        repo, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:
            repo, tag = rest, "latest"
        if not _TAG.fullmatch(tag):
            raise UsageError(
                f"{tag!r} is not a tag: 1 to 128 letters, digits, _, . and -, the first none of . and -, are expected, "
                "for example redis:7.2"
            )
    if not _REPO.fullmatch(repo) or len(repo) > _MAX_REPO:
        raise UsageError(
            f"{repo!r} is not the name of a repository: lower-case letters and digits, with . _ - / between them, "
            "are expected, for example redis or registry.example.com:5000/team/app"
        )
    return Reference(repo, tag, digest, label if plus else None, past)


def _parse_past(text: str, clock: Callable[[], float]) -> NameEntry | Moment:
    if text.isdecimal() and text.isascii() and len(text) <= 16 and int(text) > 0:
        return NameEntry(int(text))
    try:
        ago = _AGO.fullmatch(text)
        if ago is not None:
            then = datetime.fromtimestamp(clock(), UTC) - timedelta(**{f"{ago[2]}s": int(ago[1])})
        else:
            then = datetime.fromisoformat(text if "-" in text else "")  # else it may be a number with too many digits
            then = then.replace(tzinfo=UTC) if then.tzinfo is None else then
        return Moment(max(int(then.timestamp()), 0))
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is no moment: the number of an entry as `blockmap log` shows it is expected, a time in UTC "
            "(2026-11-20, 2026-11-20T08:30:00Z), or how long ago (5 minutes ago)"
        ) from None


def short_export(export: str) -> str:
    """Returns the name of an export with its digest cut to 12 digits: `repo@HEX12`."""
    repo, mark, digest = export.partition("@sha256:")
    return f"{repo}@{digest[:12]}" if mark else export


def to_component(repo: str) -> str:
    """Returns a repository or label as one component of a key."""
    return repo.replace("/", "~").replace(":", "=")


def from_component(component: str) -> str:
    return component.replace("~", "/").replace("=", ":")
