"""What is in a store: the images that names stand for, and how two versions differ."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blockmap.errors import BlockmapError, ImageError, Untrusted
from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.entry import Entry
from blockmap.format.refs import parse_reference
from blockmap.format.version import Version
from blockmap.publish.parallel import gather
from blockmap.store.base import Reader
from blockmap.store.names import StoredEntry
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.signing import Trust
from blockmap.store.trusted_names import TrustedNames
from blockmap.upkeep.differences import FileChange, compare_files, compare_trees
from blockmap.upkeep.shares import shares

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image, as a name stands for it."""

    name: str
    digest: str
    """The version as sha256:HEX."""
    entry: int
    """The number of the name's entry."""
    time: int
    """Unix time at which the name was moved there."""
    volume_bytes: int
    data_bytes: int | None
    """How much data it has; None where it was not asked for, or its trees cannot be read. The same holds for the next two."""
    stored_bytes: int | None
    """What its chunks take in the store, as compressed."""
    unique_bytes: int | None
    """What of that no other image in the store shares."""
    signed_with: str | None
    """The id of the key that the entry says it is signed with."""
    refused: str | None
    """Why it is not opened with the keys that are trusted; None where it is."""


@dataclass(frozen=True, slots=True)
class VersionDifference:
    """How a version differs from another."""

    files: list[FileChange] | None
    """Regular files that differ by content; None where they were not asked for, or one of the versions has no file system."""
    ranges: list[tuple[int, int]]
    """Parts of the volume that differ: first byte and length, in order."""
    differing_bytes: int
    added_bytes: int
    """What the second adds to the store."""


def list_images(
    store: Reader, trust: Trust, wanted: str | None = None, data: bool = False, memory: Path | None = None
) -> list[NamedImage]:
    """Returns what names stand for, 16 asked for at once; what cannot be read is left out, and logged.

    `wanted` is a repository, or one name in it, REPO:TAG. With `data`, the trees of all images are read, since they say what is
    shared; `memory` is the file in which this host remembers them.
    """
    reader, repository, trusted = TrustedNames(store, trust), Repository(store), Repository(store, trust)
    names = [
        name for name in sorted(reader.catalogue().items()) if data or wanted is None or wanted in _called(*name[0])
    ]

    def find(name: tuple[tuple[str, str], int]) -> tuple[Entry | None, str | None]:
        (repo, tag), n = name
        newest = StoredEntry(*reader.entry(repo, tag, n))
        try:
            valid = reader.judge(repo, tag, newest)
            return (None if valid is None else valid.entry), None
        except Untrusted as error:
            return newest.entry, str(error)

    entries = gather(find, names)
    versions = {
        (each[0].version, each[0].number)
        for each in entries
        if not isinstance(each, BlockmapError) and each[0] is not None and each[0].version is not None
    }

    def read(at: tuple[Digest, int]) -> tuple[Version, str | None]:
        refusal = None
        try:
            version = trusted.version(*at)
        except Untrusted as error:
            version, refusal = repository.version(*at), str(error)
        return version, refusal

    about = dict(zip(versions, gather(read, versions), strict=True))
    trees = {
        at[0]: (found[0].root, found[0].extra) for at, found in about.items() if not isinstance(found, BlockmapError)
    }
    took = shares(repository, trees, memory) if data else {}
    images = []
    for ((repo, tag), _), each in zip(names, entries, strict=True):
        if isinstance(each, BlockmapError):
            _log.warning("%s:%s: %s", repo, tag, each)
            continue
        entry, refusal = each
        if entry is None or entry.version is None:
            continue
        found = about[entry.version, entry.number]
        if isinstance(found, BlockmapError):
            _log.warning("%s:%s: %s", repo, tag, found)
            continue
        version, refused = found
        if wanted is not None and wanted not in _called(repo, tag):
            continue
        share = took.get(version.name)
        if isinstance(share, BlockmapError):
            _log.warning("%s:%s: %s", repo, tag, share)
            share = None
        images.append(
            NamedImage(
                name=f"{repo}:{tag}",
                digest=f"sha256:{version.name.hex()}",
                entry=entry.n,
                time=entry.time,
                volume_bytes=version.root.size * BLOCK,
                data_bytes=None if share is None else share.data_bytes,
                stored_bytes=None if share is None else share.stored_bytes,
                unique_bytes=None if share is None else share.unique_bytes,
                signed_with=None if entry.signature is None else entry.signature.key,
                refused=refusal or refused,
            )
        )
    return images


def _called(repo: str, tag: str) -> tuple[str, str]:
    """Returns what somebody may say who wants to see a name."""
    return repo, f"{repo}:{tag}"


def compare_versions(store: Reader, trust: Trust, names: Sequence[str], want_files: bool) -> VersionDifference:
    """Compares what two names stand for; logs why files are not compared, where they are wanted."""
    repository = Repository(store, trust)
    left, right = (find_version(repository, parse_reference(name)).root for name in names)
    trees = compare_trees(repository, left, right)
    files = None
    if want_files:
        try:
            files = compare_files(repository, left, right, trees)
        except ImageError as error:
            _log.warning("the files are not compared: %s", error)
    ranges = [(start * BLOCK, (end - start) * BLOCK) for start, end in trees.ranges]
    return VersionDifference(files, ranges, trees.blocks * BLOCK, trees.added_bytes)
