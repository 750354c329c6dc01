"""Finds the version that a client asks for by name, by its digest, or by that of an OCI document."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from blockmap.errors import BlockmapError, Corrupt, NotFound, StoreUnavailable, Untrusted
from blockmap.format import keys
from blockmap.format.digest import Digest
from blockmap.format.entry import Entry, root_of
from blockmap.format.refs import Reference, pinned_export
from blockmap.format.tree import Root
from blockmap.format.version import Version
from blockmap.store import limits
from blockmap.store.base import Reader
from blockmap.store.concurrent import spawn
from blockmap.store.documents import find_document
from blockmap.store.names import NameReader
from blockmap.store.numbered import read_numbers
from blockmap.store.repository import Repository
from blockmap.store.trusted_names import TrustedNames

_MOST_TAGS = 20
"""Tags that the message about an unknown one names, each of which is a question to the store."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A version, and how it was asked for."""

    reference: Reference
    name: Digest
    version: Version
    root: Root
    """The volume's root, placed where the name's entry says."""
    document: bytes | None = None
    """The record, as stored, that leads to the version if the digest of an OCI document was asked for."""

    @property
    def pinned(self) -> str:
        """Returns the export name that will always mean this version."""
        return pinned_export(self.reference.repo, self.name)


def find_version(repository: Repository, reference: Reference) -> Resolved:
    """Returns the version that `reference` stands for now; NotFound, Untrusted, Corrupt, StoreUnavailable."""
    if reference.digest is not None:
        return by_digest(repository, reference, Digest(reference.digest))
    entry = find_entry(TrustedNames(repository.store, repository.trust), reference)
    if entry is None or entry.version is None:
        raise no_image(reference, repository.store)
    version = repository.version(entry.version, entry.number)
    return Resolved(reference, entry.version, version, root_of(entry, version))


def find_entry(names: NameReader, reference: Reference) -> Entry | None:
    """Returns the entry of a name that `reference` asks for, None where there is none; Untrusted, Corrupt, StoreUnavailable."""
    assert reference.tag is not None
    if reference.past is None:
        return names.newest(reference.repo, reference.tag)
    return names.past(reference.repo, reference.tag, reference.past)


def by_digest(repository: Repository, reference: Reference, name: Digest) -> Resolved:
    """Returns a version by its digest, or by that of an OCI document; asks for both at once."""
    first = spawn(lambda: repository.version_at(name, 1))
    numbered = spawn(lambda: read_numbers(repository.store, partial(keys.oci, name), limits.OCI))
    with suppress(NotFound, Corrupt, Untrusted):
        version = first.result()
        return Resolved(reference, name, version, version.root)
    missing: BlockmapError = NotFound(f"nothing in {repository.store.url} has the digest of {reference}")
    try:
        found = find_document(repository, name, numbered.result())
    except (NotFound, Corrupt, Untrusted) as error:
        found, missing = None, error
    if found is not None:
        return Resolved(reference, found.record.version, found.version, found.version.root, found.stored)
    try:
        version = repository.version(name)
    except NotFound:
        raise missing from None
    return Resolved(reference, name, version, version.root)


def no_image(reference: Reference, store: Reader) -> NotFound:
    if reference.past is not None:
        name = f"{reference.repo}:{reference.tag}"
        return NotFound(f"{name} was no image at {reference.past} in {store.url}: see `blockmap log {name}`")
    tags = _tags(store, reference.repo)
    there = f"{reference.repo} has the {'tag' if len(tags) == 1 else 'tags'} {', '.join(tags)}; " if tags else ""
    return NotFound(f"there is no image {reference} in {store.url}: {there}see `blockmap images`, or import it")


def _tags(store: Reader, repo: str) -> list[str]:
    """Returns tags of a repository that stand for something, as many as people look through, none where the store does not say."""
    names = NameReader(store)
    found = []
    with suppress(BlockmapError):
        for tag, n in sorted(names.tags(repo).items()):
            if names.entry(repo, tag, n)[0].version is not None:
                found.append(tag)
            if len(found) == _MOST_TAGS:
                break
    return found


def check_presence(store: Reader) -> None:
    """Raises StoreUnavailable where the store itself has gone: an object that is not found there need not be absent."""
    try:
        store.get(keys.FORMAT, limits.FORMAT)
    except NotFound:
        raise StoreUnavailable(f"there is no store at {store.url} now: check that it is mounted") from None
