"""Finds the version of an OCI document by the document's digest, and believes no record that is not found right."""

from dataclasses import dataclass
from functools import partial

from blockmap.errors import Corrupt
from blockmap.format import keys, oci
from blockmap.format.oci import DocumentRecord
from blockmap.format.version import Version
from blockmap.store import limits
from blockmap.store.numbered import Numbered, newest_right
from blockmap.store.repository import Repository


@dataclass(frozen=True, slots=True)
class FoundDocument:
    """A record that leads to a version, of which the document is one."""

    record: DocumentRecord
    stored: bytes
    version: Version


def find_document(repository: Repository, digest: bytes, numbered: Numbered) -> FoundDocument | None:
    """Returns the highest record that is right, given those with numbers; None where the store has none at all.

    Raises NotFound where they lead to versions that are gone, Corrupt where they are wrong, StoreUnavailable.
    """

    def check(stored: bytes) -> FoundDocument:
        return check_document(repository, digest, stored)

    return newest_right(repository.store, partial(keys.oci, digest), limits.OCI, check, numbered)


def check_document(repository: Repository, digest: bytes, stored: bytes) -> FoundDocument:
    """Returns what a record leads to; NotFound, Corrupt, FormatError, StoreUnavailable."""
    record = oci.decode(stored)
    version = repository.version(record.version, record.number)
    if not record.fits(digest, version):
        raise Corrupt(f"version {record.version.hex()} has no document of this digest, as far as can be checked")
    return FoundDocument(record, stored, version)
