"""Checks what was derived from a version and speeds its use up, or leads to it: nothing of it is believed unchecked."""

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256

from blockmap.errors import CannotList, Corrupt, FormatError, NotFound
from blockmap.format import BLOCK, bundle, filemap, hooks, keys, layer, node
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.tree import Root
from blockmap.format.version import Version
from blockmap.store import limits
from blockmap.store.base import Reader
from blockmap.store.documents import check_document
from blockmap.store.numbered import Key, newest_right, read_numbers
from blockmap.store.packs import Packs, expand, expand_stream
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
        *(_document(repository, sha256(document).digest()) for document in documents),
    ]
    for key_of, most, check in numbered:
        try:
            newest_right(store, key_of, most, check, read_numbers(store, key_of, most))
        except (NotFound, Corrupt) as error:
            yield str(error)
    checks: list[tuple[str, int, _Check]] = [
        (keys.hooks(own.digest), limits.HOOKS, _hooks(repository, own)) for own in (version.root, version.extra)
    ]
    with suppress(CannotList):
        checks += [(key, limits.BUNDLE, _bundle) for key in store.list(keys.bundles(name))]
    for key, most, check in checks:
        try:
            check(store.get(key, most))
        except NotFound:
            continue
        except (FormatError, Corrupt, struct.error) as error:
            yield f"{key} is damaged: {error}; it is done without, delete it and import the image again to have it"


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


def _bundle(data: bytes) -> None:
    _, length = bundle.measure(lambda start, end: data[start:end])
    head = Packs.open_bundle(data[:length])
    if head.end != len(data):
        raise FormatError(f"a bundle of {head.end} bytes has {len(data)}")
    frames = [memoryview(Packs.open_frame(head, at, data[own.offset : own.end])) for at, own in enumerate(head.frames)]
    for own in head.nodes:
        node.decode(bytes(frames[own.frame][own.offset : own.offset + own.length]), ABSENT, own.node)
    for piece in head.pieces:
        blocks = frames[piece.frame][piece.offset : piece.offset + piece.mask.bit_count() * BLOCK]
        if not bundle.is_good(piece, blocks):
            raise FormatError(f"the bundle has other blocks than chunk {piece.chunk.hex()}")
