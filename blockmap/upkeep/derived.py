"""Checks what was derived from a version and speeds its use up, or leads to it, and makes it again: nothing of it is believed
unchecked."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from blockmap.errors import CannotList, Corrupt, FormatError, NotFound
from blockmap.filesystem.ext4.reader import Ext4Reader
from blockmap.filesystem.member import MemberKind
from blockmap.format import filemap, hooks, keys, layer, oci, recipe
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.oci import DocumentRecord
from blockmap.format.tree import Root
from blockmap.format.version import Version
from blockmap.learn.bundler import put_bundles
from blockmap.publish.derived import supersede
from blockmap.store import limits
from blockmap.store.base import Pruner, Reader
from blockmap.store.blobs import check_kept
from blockmap.store.bundles import check_bundle, read_head
from blockmap.store.documents import check_document
from blockmap.store.log import LogReader
from blockmap.store.numbered import Key, newest_right, read_numbers
from blockmap.store.packs import body_stream, expand, expand_stream
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves

_Check = Callable[[bytes], object]
_Warn = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class DerivedFault:
    """A derived object of which no number is right."""

    key: str
    message: str
    mend: Callable[[Pruner, _Warn], object] | None
    """Stores it anew; None where the store has not what it is made of."""


@dataclass(frozen=True, slots=True)
class _Derived:
    """A kind of derived object."""

    key: Key
    most: int
    """The limit on its bytes."""
    check: _Check
    make: Callable[[], bytes] | None


def check_derived(
    store: Reader,
    name: Digest,
    version: Version,
    chains: Sequence[bytes],
    number: int = 1,
    repos: Sequence[str] = (),
    deep: bool = True,
) -> Iterator[DerivedFault]:
    """Yields what is wrong with objects derived from a version, whose record has this `number`; `chains` has the chain IDs of its
    layers, `repos` the repositories whose profiles it has bundles of.

    An object that is missing is not wrong: the next import of the image makes it. Unless `deep`, hooks and bundles are not
    compared with the tree.
    """
    root, repository = version.root, Repository(store)
    blobs = list(dict.fromkeys(oci.layer_digests(version.manifest or b"")))
    documents = [document for document in (version.manifest, version.config) if document is not None]
    derived = [
        _Derived(
            partial(keys.filemap, root.digest),
            limits.FILE_MAP,
            lambda data: list(filemap.decode(data, root.digest, expand)),
            lambda: _file_map(repository, root),
        ),
        *(_Derived(partial(keys.layer, chain), limits.LAYER, _layer(chain), None) for chain in chains),
        *(_hooks(repository, own, deep) for own in (root, version.extra)),
        *(_document(repository, sha256(document).digest(), name, number) for document in documents),
        *(_Derived(partial(keys.recipe, blob), recipe.MAX_BYTES, recipe.decode, None) for blob in blobs),
    ]
    for own in derived:
        try:
            newest_right(store, own.key, own.most, own.check, read_numbers(store, own.key, own.most))
        except (NotFound, Corrupt) as error:
            newest = LogReader(store, own.key).newest()
            yield DerivedFault(own.key(newest), str(error), None if own.make is None else _superseded(own, newest))
    for blob in blobs if deep else ():
        try:
            check_kept(store, blob)
        except Corrupt as error:
            yield DerivedFault(
                keys.blob_part(blob, 1), f"{error}; importing the image again with --keep-blobs mends it", None
            )
    with suppress(CannotList):
        newest_bundles: dict[str, tuple[int, int]] = {}
        for label, *numbers in filter(None, map(keys.parse_bundle, store.list(keys.bundles(name)))):
            newest_bundles[label] = max((numbers[0], numbers[1]), newest_bundles.get(label, (0, 0)))
        for label, (profile, bundle) in sorted(newest_bundles.items()):
            key = keys.bundle(name, label, profile, bundle)
            try:
                if deep:
                    check_bundle(store, key, root)
                else:
                    read_head(store, key)
            except NotFound:
                continue
            except Corrupt as error:
                yield DerivedFault(
                    key,
                    f"{error}; starts do without, importing the image again mends it",
                    partial(_put_bundles, repos, name, root) if repos else None,
                )


def _superseded(own: _Derived, newest: int) -> Callable[[Pruner, _Warn], object]:
    def mend(store: Pruner, warn: _Warn) -> None:
        assert own.make is not None
        supersede(store, warn, own.key, newest, [own.make()])

    return mend


def _put_bundles(repos: Sequence[str], name: Digest, root: Root, store: Pruner, warn: _Warn) -> None:
    for repo in repos:
        put_bundles(store, repo, name, root, warn)


def _file_map(repository: Repository, root: Root) -> bytes:
    """Makes the file map of a volume from its file system, as an import makes it from the image."""
    files = [
        (entry.path, entry.size, [(start, length) for _, start, length in entry.runs])
        for entry in Ext4Reader(stored_reader(repository, root)).walk()
        if entry.kind is MemberKind.FILE
    ]
    return filemap.encode(root.digest, sorted(files), body_stream)


def _hooks(repository: Repository, root: Root, deep: bool) -> _Derived:
    def made() -> hooks.Hooks:
        if root.digest == ABSENT:
            return hooks.sample([])
        return hooks.sample((span, leaf.chunks) for span, leaf in leaves(root, repository.packs.nodes))

    def check(data: bytes) -> None:
        found = hooks.decode(data, root.digest)
        if deep and found.tolist() != made().tolist():
            raise FormatError("these are not the hooks of the tree")

    return _Derived(partial(keys.hooks, root.digest), limits.HOOKS, check, lambda: hooks.encode(root.digest, made()))


def _layer(chain: bytes) -> _Check:
    return lambda data: layer.decode(data, chain).headers(expand_stream)


def _document(repository: Repository, digest: bytes, name: Digest, number: int) -> _Derived:
    return _Derived(
        partial(keys.oci, digest),
        limits.OCI,
        lambda data: check_document(repository, digest, data),
        lambda: oci.encode(DocumentRecord(name, number)),
    )
