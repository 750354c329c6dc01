"""From what a client asks for to a version: names, digests of versions, digests of OCI documents."""

from dataclasses import dataclass

from blockmap.errors import Corrupt, FormatError, NotFound
from blockmap.format import keys, oci
from blockmap.format.digest import Digest
from blockmap.format.refs import Reference
from blockmap.format.version import Version
from blockmap.store.names import NameReader
from blockmap.store.repository import Repository


@dataclass(frozen=True, slots=True)
class Found:
    """A version, and how it was asked for."""

    reference: Reference
    name: Digest
    version: Version

    @property
    def pinned(self) -> str:
        """The export name that will always mean this version."""
        return f"{self.reference.repo}@sha256:{self.name.hex()}"


def find_version(repository: Repository, reference: Reference) -> Found:
    """The version that `reference` stands for now; NotFound, Corrupt, StoreUnavailable."""
    if reference.digest is None:
        assert reference.tag is not None
        entry = NameReader(repository.store).newest(reference.repo, reference.tag)
        if entry is None or entry.version is None:
            raise NotFound(
                f"there is no image {reference} in {repository.store.url}: see `blockmap images`, or import it"
            )
        return Found(reference, entry.version, repository.version(entry.version, entry.number))
    name = Digest(reference.digest)
    try:
        return Found(reference, name, repository.version(name))
    except NotFound:
        pass
    try:
        name, number = oci.decode(repository.store.get(keys.oci(reference.digest)))
    except NotFound:
        raise NotFound(f"nothing in {repository.store.url} has the digest of {reference}") from None
    except FormatError as error:
        raise Corrupt(f"the record of digest {reference.digest.hex()} is damaged: {error}") from error
    return Found(reference, name, repository.version(name, number))
