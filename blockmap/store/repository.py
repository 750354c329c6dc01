"""Reads verified objects from a dumb store: what does not match its name never gets out.

Chunks and nodes are read by placement, which is advice; the bytes that arrive are checked against the digest asked for.
"""

from functools import partial

from blockmap.errors import BlockmapError, Corrupt, FormatError, NotFound, Untrusted
from blockmap.format import filemap, keys, version
from blockmap.format.digest import Digest
from blockmap.format.node import Node
from blockmap.format.placement import Placement
from blockmap.format.version import Version
from blockmap.store import limits
from blockmap.store.base import Reader
from blockmap.store.concurrent import each
from blockmap.store.numbered import newest_right, read_numbers
from blockmap.store.pack_logs import MovedLogs
from blockmap.store.packs import Packs, expand, raised
from blockmap.store.signing import Trust

VERSION_ATTEMPTS = 8
"""A version's record has another number only where an earlier one was condemned, or lacks a signature."""


class Repository:
    """Reads verified objects from a store; where keys are trusted, only versions that one of them signed."""

    def __init__(self, store: Reader, trust: Trust | None = None) -> None:
        self.store = store
        self.trust = trust or Trust()
        self.packs = Packs(store.get_range, MovedLogs(store))

    def chunk(self, name: Digest, place: Placement) -> bytes | memoryview:
        return self.packs.chunk(name, place)

    def node(self, name: Digest, place: Placement | None) -> Node:
        return raised(self.packs.nodes([(name, place)])[0])

    def version(self, name: Digest, number: int = 1) -> Version:
        """Returns the record of a version; if it is not at its number, asks for the few others that it may have at once."""
        errors: list[BlockmapError] = []

        def attempt(other: int) -> Version | None:
            try:
                return self.version_at(name, other)
            except (NotFound, Corrupt, Untrusted) as error:
                errors.append(error)
                return None

        found = attempt(number)
        if found is None:
            others = [other for other in range(1, VERSION_ATTEMPTS + 1) if other != number]
            found = next((record for record in each(attempt, others) if record is not None), None)
        if found is not None:
            return found
        raise next((error for error in errors if isinstance(error, Untrusted)), errors[0])

    def version_at(self, name: Digest, number: int) -> Version:
        """Returns the record of a version with this number; NotFound, Corrupt, Untrusted."""
        try:
            stored = self.store.get(keys.version(name, number), limits.VERSION)
            found = version.decode(stored, name)
        except NotFound:
            raise NotFound(f"there is no version {name.hex()} in {self.store.url}") from None
        except FormatError as error:
            raise Corrupt(f"the record of version {name.hex()} is damaged: {error}") from error
        self.trust.check_version(f"version {name.hex()}", stored, found.signature)
        return found

    def file_map(self, root: Digest) -> list[filemap.File]:
        """Returns the files of the volume `root`; NotFound where none was stored, Corrupt where all that was is damaged."""
        key = partial(keys.filemap, root)
        numbered = read_numbers(self.store, key, limits.FILE_MAP)
        found = newest_right(
            self.store, key, limits.FILE_MAP, lambda data: list(filemap.decode(data, root, expand)), numbered
        )
        if found is None:
            raise NotFound(f"there is no file map of volume {root.hex()} in {self.store.url}")
        return found
