"""Finds the version that an import of an image would give, where the store has it whole: then nothing of the image is read."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from blockmap.errors import BlockmapError, Corrupt, FormatError, NotFound, Untrusted
from blockmap.filesystem.member import ImageSource
from blockmap.format import filemap, keys, layer
from blockmap.format.digest import Digest, from_hex
from blockmap.format.version import Version, WriterLayout
from blockmap.image.layer import BlobLayer, config_chains
from blockmap.image.oci import digest_hex
from blockmap.publish.catalogue import Catalogue
from blockmap.publish.chunks import Counts
from blockmap.publish.local import Numbered
from blockmap.store import limits
from blockmap.store.base import Reader
from blockmap.store.blobs import check_kept, find_recipe
from blockmap.store.concurrent import each
from blockmap.store.documents import FoundDocument, find_document
from blockmap.store.names import NameTarget
from blockmap.store.numbered import newest_right, read_numbers
from blockmap.store.packs import expand
from blockmap.store.repository import Repository
from blockmap.store.signing import Signer


@dataclass(frozen=True, slots=True)
class StandingVersion:
    """A version that a name stands for, and of which nothing is missing."""

    version: Version
    number: int
    """The number of its record."""
    counts: Counts
    """What it holds, none of it new."""


def stored_document(repository: Repository, digest: str) -> bytes | None:
    """Returns the manifest or configuration with a digest like `sha256:HEX`, as a version in the store has it; None where no
    version has. Raises ImageError for another digest, StoreUnavailable."""
    name = from_hex(digest_hex(digest))
    found = _find(repository, name)
    own = () if found is None else (found.version.manifest, found.version.config)
    return next((document for document in own if document is not None and sha256(document).digest() == name), None)


def find_standing(
    repository: Repository,
    catalogue: Catalogue,
    source: ImageSource,
    target: NameTarget,
    layout: WriterLayout,
    signer: Signer | None,
) -> StandingVersion | None:
    """Returns the version that `source` has; None where an import would give another, or stores something that is missing.

    Where imports are signed, it must have the signer's signature: what others stored is read before it is vouched for.
    """
    document = source.manifest or source.config
    found = _find(repository, sha256(document).digest())
    if found is None or (found.version.manifest, found.version.config) != (source.manifest, source.config):
        return None
    name = found.record.version
    if found.version.parents or found.version.layout != layout:
        return None
    at = _named(catalogue, target, name)
    if at is None:
        return None
    try:
        version = repository.version_at(*at)
        if signer is not None and not signer.has_signed_version(version):
            return None
        counts = _count(catalogue, at)
    except BlockmapError:  # an import stores it again, and says so
        return None
    if counts is None or not _has_records(repository, version, source):
        return None
    return StandingVersion(version, at[1], counts)


def has_all_blobs(store: Reader, source: ImageSource) -> bool:
    """Returns True if the store keeps the blobs of an image's layers, as far as there are any."""
    try:
        return all(each(partial(check_kept, store), _digests(source)))
    except Corrupt:
        return False


def _find(repository: Repository, digest: bytes) -> FoundDocument | None:
    numbered = read_numbers(repository.store, partial(keys.oci, digest), limits.OCI)
    with suppress(NotFound, Corrupt, Untrusted):
        return find_document(repository, digest, numbered)
    return None


def _named(catalogue: Catalogue, target: NameTarget, version: Digest) -> Numbered | None:
    """Returns the number of a version's record that a name stands for, if possible `target`; None where none does."""
    own = catalogue.tags.get(target.repo, {}).get(target.tag)
    if own is not None and own[0] == version:
        return own
    return next((at for at in catalogue.versions if at[0] == version), None)


def _count(catalogue: Catalogue, at: Numbered) -> Counts | None:
    """Counts what a version's trees hold; returns None where a chunk is lost. Raises the error of a node that cannot be read."""
    counts = Counts()
    chunks: set[Digest] = set()
    for root in catalogue.versions[at]:
        for _, leaf in catalogue.known.leaves(root):
            if leaf.placements.first_unknown() is not None:
                return None
            counts.blocks += int(leaf.lengths.sum())
            chunks.update(leaf.chunks)
    counts.chunks = len(chunks)
    return counts


def _has_records(repository: Repository, version: Version, source: ImageSource) -> bool:
    """Returns True if all that is derived from a version can be read, as far as it does not depend on a repository."""
    root = version.root.digest

    def has_layer(chain: bytes) -> bool:
        key = partial(keys.layer, chain)
        numbered = read_numbers(store, key, limits.LAYER)
        found = newest_right(store, key, limits.LAYER, lambda data: layer.decode(data, chain), numbered)
        if found is None or found.version == version.name:
            return found is not None
        return chain in config_chains(repository.version(found.version, found.number).config)

    store = repository.store
    try:
        key = partial(keys.filemap, root)
        numbered = read_numbers(store, key, limits.FILE_MAP)
        files = newest_right(store, key, limits.FILE_MAP, lambda data: filemap.body(data, root, expand), numbered)
        return (
            files is not None
            and all(each(has_layer, [own.chain for own in source.layers]))
            and None not in each(partial(find_recipe, store), _digests(source))
        )
    except (NotFound, Corrupt, FormatError):
        return False


def _digests(source: ImageSource) -> Sequence[bytes]:
    """Returns the digests of an image's blobs, as far as they are known."""
    return [own.digest for own in source.layers if isinstance(own, BlobLayer) and own.digest is not None]
