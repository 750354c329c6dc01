"""Finds the version of an OCI document by the document's digest, and believes no record that is not found right."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from blockmap.errors import BlockmapError, Corrupt, FormatError, NotFound, StoreError
from blockmap.format import keys, oci
from blockmap.format.oci import DocumentRecord
from blockmap.format.version import Version
from blockmap.store.base import Reader
from blockmap.store.concurrent import spawn
from blockmap.store.log import LogReader
from blockmap.store.repository import Repository

_log = logging.getLogger(__name__)

_READ = 8
"""Records of one document that are read, the newest ones: there is a second only where the first turned out wrong."""


@dataclass(frozen=True, slots=True)
class FoundDocument:
    """A record that leads to a version, of which the document is one."""

    record: DocumentRecord
    stored: bytes
    version: Version


def read_records(store: Reader, digest: bytes) -> dict[int, bytes]:
    """Returns the newest records of a document by number, as stored; not the one of older stores, which has no number."""
    log = LogReader(store, partial(keys.oci, digest))
    second = spawn(lambda: log.exists(2))
    found: dict[int, bytes] = {}
    with suppress(NotFound):
        found[1] = log.get(1)
    newest = log.newest(2) if second.result() else 1
    for number in range(newest, max(newest - _READ, 1), -1):
        with suppress(NotFound):
            found[number] = log.get(number)
    return found


def find_document(repository: Repository, digest: bytes, records: Mapping[int, bytes]) -> FoundDocument | None:
    """Returns the highest of the records that is right, given those with numbers; None where there is none at all.

    Raises NotFound where they lead to versions that are gone, Corrupt where they are wrong, StoreUnavailable.
    """
    errors: list[BlockmapError] = []
    for number, stored in _descending(repository.store, digest, records):
        try:
            return _checked(repository, digest, stored)
        except (NotFound, Corrupt, FormatError) as error:
            _log.warning("%s in %s is not believed: %s", keys.oci(digest, number), repository.store.url, error)
            errors.append(error)
    if not errors:
        return None
    if all(isinstance(error, NotFound) for error in errors):
        raise errors[0]
    raise Corrupt(
        f"the record of digest {digest.hex()} is damaged or wrong: {errors[0]}; importing the image again mends it"
    )


def _descending(store: Reader, digest: bytes, records: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
    yield from sorted(records.items(), reverse=True)
    try:
        yield 0, store.get(keys.oci(digest, 0))
    except NotFound:
        pass
    except StoreError:  # a server may have no good answer where there is a directory
        if not records:
            raise


def _checked(repository: Repository, digest: bytes, stored: bytes) -> FoundDocument:
    """Raises NotFound, Corrupt, FormatError, StoreUnavailable."""
    record = oci.decode(stored)
    version = repository.version(record.version, record.number)
    if not record.fits(digest, version):
        raise Corrupt(f"version {record.version.hex()} has no document of this digest, as far as can be checked")
    return FoundDocument(record, stored, version)
