"""Makes and stores bundles of profiles on versions: ports each profile, with the blocks that ext4 reads to find its files."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from blockmap.errors import BlockmapError, Corrupt, ImageError, NotFound, StoreError
from blockmap.filesystem.ext4.lookup import Lookup
from blockmap.format import keys
from blockmap.format.digest import Digest
from blockmap.format.filemap import FileRun
from blockmap.format.profile import Profile, ProfileItem
from blockmap.format.tree import Root
from blockmap.learn import build_bundle
from blockmap.learn.block_index import BlockIndex, Numbers
from blockmap.learn.fill_gaps import OF_OTHERS, fill_gaps
from blockmap.learn.guess_files import guess_files
from blockmap.learn.port_profile import port, read_items
from blockmap.learn.sample import left_out
from blockmap.learn.stored_index import index_of
from blockmap.publish.derived import put_next
from blockmap.store.base import Pruner, Writer
from blockmap.store.bundles import bundle_key, check_bundle
from blockmap.store.log import LogReader
from blockmap.store.profiles import ProfileLog
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuiltBundle:
    """A bundle that was stored."""

    version: Digest
    label: str
    n: int
    """Number of the profile."""
    stored_bytes: int
    blocks: int
    """Number of blocks that starts are expected to read."""


def lookup_in(repository: Repository, root: Root) -> Lookup | None:
    """Returns the lookup of paths in the volume `root`; None if it has no file system."""
    try:
        return Lookup(stored_reader(repository, root))
    except ImageError as error:
        _log.info("profiles are ported without the file system's own blocks: %s", error)
        return None


def port_to(
    repository: Repository, lookup: Lookup | None, layout: BlockIndex, items: Sequence[ProfileItem], source: Digest
) -> list[ProfileItem]:
    """Ports the items of a profile of the volume `source` to that of `layout`, with the blocks that finding its files reads."""
    try:
        sizes = {file.path: file.size for file in repository.file_map(source)}
    except (NotFound, Corrupt) as error:
        _log.info("files that changed are ported as they were: %s", error)
        sizes = {}
    return port(items, source, layout, lookup, sizes)


def listed_items(
    repository: Repository, lookup: Lookup | None, layout: BlockIndex, profile: Profile
) -> list[ProfileItem]:
    """Returns the items of a profile on the volume of `layout`, as its bundle lists them."""
    if profile.root == layout.root:
        return fill_gaps(profile.items, layout)
    return fill_gaps(port_to(repository, lookup, layout, profile.items, profile.root), layout, OF_OTHERS)


def left_out_of(profile: Profile, layout: BlockIndex) -> Numbers:
    """Returns the blocks that the bundle of a profile on the volume of `layout` has and does not list.

    None where the profile is ported: some of what is listed then is a guess, and says nothing about the profile.
    """
    if profile.root != layout.root:
        return np.empty(0, np.int64)
    return left_out(profile.items, profile.starts, profile.n, layout)


def put_bundle(store: Writer, version: Digest, root: Root, layout: BlockIndex, profile: Profile) -> BuiltBundle | None:
    """Makes and stores the next bundle of a profile on a version; None if that has no block of the profile.

    An empty profile has an empty bundle, so that nobody goes on with the one before.
    """
    repository = Repository(store)
    ported = profile.root != root.digest
    besides: list[FileRun] = []
    lookup = lookup_in(repository, root) if ported else None
    items = listed_items(repository, lookup, layout, profile)
    if not items and profile.items:
        return None
    if items and ported:
        if lookup is not None:
            besides = [(block, 1) for block in lookup.further(item.path for item in items if item.path is not None)]
        besides += guess_files(items, layout, lookup)
    listed = layout.without(items, left_out_of(profile, layout))
    parts, _ = build_bundle.build_bundle(
        repository, root, read_items(items), layout.blocks, ported, besides, read_items(listed)
    )
    key = partial(keys.bundle, version, profile.label, profile.n)
    put_next(store, key, LogReader(store, key).newest(), parts)
    return BuiltBundle(version, profile.label, profile.n, sum(map(len, parts)), sum(item.blocks for item in items))


def put_bundles(
    store: Pruner, repo: str, version: Digest, root: Root, warn: Callable[[str], object]
) -> list[BuiltBundle]:
    """Makes the bundles of all profiles of a repository on a version, and updates the hints of names that refer to it.

    A bundle that is there is read whole, and superseded where it is damaged or wrong.
    """
    log = ProfileLog(store)
    layout: BlockIndex | None = None
    made = []
    for label, n in log.labels(repo).items():
        is_stored = _is_stored(store, version, root, label, n, warn)
        try:
            profile = log.get(repo, label, n)
        except BlockmapError as error:
            warn(f"versions get no bundles of what was learnt for {label}, until more is learnt: {error}")
            continue
        if is_stored:
            continue
        layout = layout or index_of(Repository(store), root)
        one = put_bundle(store, version, root, layout, profile)
        made += [one] if one is not None else []
    if made:
        log.advise(repo, version)
    return made


def _is_stored(
    store: Pruner, version: Digest, root: Root, label: str, profile: int, warn: Callable[[str], object]
) -> bool:
    """Returns True if the newest bundle of a profile is right; says what is wrong with it, and makes room for the next."""
    key = bundle_key(store, version, label, profile)
    if key is None:
        return False
    try:
        check_bundle(store, key, root)
    except (Corrupt, NotFound) as error:
        warn(f"{error}; it is superseded")
    else:
        return True
    with suppress(StoreError):  # in a directory, a file without a number stands where numbers are to be
        store.delete(keys.bundle(version, label, profile, 0))
    return False
