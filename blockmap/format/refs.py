"""References that people type: names, digests and labels of images, and their form as components of keys.

The grammar is docker's, as typed: no registry is implied.
"""

import re
from dataclasses import dataclass
from typing import Final

from blockmap.errors import UsageError

_DOMAIN = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*(?::[0-9]+)?"
_PATH = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPO = re.compile(rf"(?:{_DOMAIN}/)?{_PATH}(?:/{_PATH})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LABEL = re.compile(r"[a-z0-9._/-]{1,64}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MAX_REPO = 255

DEFAULT_LABEL: Final = "default"
"""The label of starts for which none is given."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An image named by tag or by digest, and a workload of it."""

    repo: str
    tag: str | None
    digest: bytes | None
    """SHA-256 of a version, or of an OCI manifest, index or configuration."""
    label: str | None = None

    def __str__(self) -> str:
        text = f"{self.repo}:{self.tag}" if self.digest is None else f"{self.repo}@sha256:{self.digest.hex()}"
        return f"{text}+{self.label}" if self.label else text


def parse_name(text: str) -> tuple[str, str]:
    """Parses `REPO[:TAG]` into repository and tag, `latest` by default. Raises UsageError."""
    reference = parse_reference(text)
    if reference.tag is None or reference.label is not None:
        raise UsageError(f"{text!r} is not a name: REPO[:TAG] is expected, for example redis:7")
    return reference.repo, reference.tag


def is_name(repo: str, tag: str) -> bool:
    """Returns True if people can type `REPO:TAG`."""
    try:
        return parse_name(f"{repo}:{tag}") == (repo, tag)
    except UsageError:
        return False


def parse_reference(text: str) -> Reference:
    """Parses `REPO[:TAG]` or `REPO@sha256:HEX`, with `+LABEL` or without. Raises UsageError."""
    rest, plus, label = text.partition("+")
    if plus and (not _LABEL.fullmatch(label) or label in (".", "..") or label.startswith(".tmp-")):
        raise UsageError(
            f"{label!r} is not a label: 1 to 64 of a-z, 0-9, dot, underscore, slash and dash are expected, for example "
            "redis:7+migrate"
        )
    rest, at, hexadecimal = rest.partition("@")
    digest, tag = None, None
    if at:
        matched = _DIGEST.fullmatch(hexadecimal)
        if matched is None:
            raise UsageError(
                f"{text!r} has no digest after the @: sha256: and 64 lower-case hexadecimal digits are expected"
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
    return Reference(repo, tag, digest, label if plus else None)


def short_export(export: str) -> str:
    """Returns the name of an export with its digest cut to 12 digits: `repo@HEX12`."""
    repo, mark, digest = export.partition("@sha256:")
    return f"{repo}@{digest[:12]}" if mark else export


def to_component(repo: str) -> str:
    """Returns a repository or label as one component of a key."""
    return repo.replace("/", "~").replace(":", "=")


def from_component(component: str) -> str:
    return component.replace("~", "/").replace("=", ":")
