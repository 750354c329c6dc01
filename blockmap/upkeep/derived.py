"""Checks what was derived from a version and speeds its use up, or leads to it: nothing of it is believed unchecked."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256

from blockmap.errors import CannotList, Corrupt, FormatError, NotFound
from blockmap.format import filemap, hooks, keys, layer
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.tree import Root
from blockmap.format.version import Version
from blockmap.store import limits
from blockmap.store.base import Reader
from blockmap.store.bundles import check_bundle
from blockmap.store.documents import check_document
from blockmap.store.log import newest_of
from blockmap.store.numbered import Key, newest_right, read_numbers
from blockmap.store.packs import expand, expand_stream
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves

_Check = Callable[[bytes], object]


def check_derived(store: Reader, name: Digest, version: Version, chains: Sequence[bytes]) -> Iterator[str]:
    """Yields what is wrong with objects derived from a version; `chains` has the chain IDs of its layers.

    An object that is missing is not wrong: the next import of the image makes it.
    """
    root, repository = version.root.digest, Repository(store)
    documents = [document for document in (version.manifest, version.config) if document is not None]
    numbered: list[tuple[Key, int, _Check]] = [
        (partial(keys.filemap, root), limits.FILE_MAP, lambda data: list(filemap.decode(data, root, expand))),
        *((partial(keys.layer, chain), limits.LAYER, _layer(chain)) for chain in chains),
        *(
            (partial(keys.hooks, own.digest), limits.HOOKS, _hooks(repository, own))
            for own in (version.root, version.extra)
        ),
        *(_document(repository, sha256(document).digest()) for document in documents),
    ]
    for key_of, most, check in numbered:
        try:
            newest_right(store, key_of, most, check, read_numbers(store, key_of, most))
        except (NotFound, Corrupt) as error:
            yield str(error)
    with suppress(CannotList):
        newest = newest_of(store.list(keys.bundles(name)), _parse_bundle)
        for (label, profile), number in sorted(newest.items()):
            try:
                check_bundle(store, keys.bundle(name, label, profile, number), version.root)
            except NotFound:
                continue
            except Corrupt as error:
                yield f"{error}; starts do without, importing the image again mends it"


def _parse_bundle(key: str) -> tuple[tuple[str, int], int] | None:
    found = keys.parse_bundle(key)
    return None if found is None else (found[:2], found[2])


def _hooks(repository: Repository, root: Root) -> _Check:
    def check(data: bytes) -> None:
        found = hooks.decode(data, root.digest)
        expected = (
            []
            if root.digest == ABSENT
            else [(span, leaf.chunks) for span, leaf in leaves(root, repository.packs.nodes)]
        )
        if found.tolist() != hooks.sample(expected).tolist():
            raise FormatError("these are not the hooks of the tree")

    return check


def _layer(chain: bytes) -> _Check:
    return lambda data: layer.decode(data, chain).headers(expand_stream)


def _document(repository: Repository, digest: bytes) -> tuple[Key, int, _Check]:
    return partial(keys.oci, digest), limits.OCI, lambda data: check_document(repository, digest, data)
