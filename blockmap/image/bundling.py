"""Bundles of profiles on versions of images: the profile is carried there, with what ext4 reads to find its files."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from blockmap.errors import BlockmapError, Corrupt, ImageError, NotFound
from blockmap.format.digest import Digest
from blockmap.format.filemap import Run
from blockmap.format.profile import Item, Profile
from blockmap.format.tree import Root
from blockmap.image.ext4.lookup import Lookup
from blockmap.learn import bundles
from blockmap.learn.carry import carry, readings
from blockmap.learn.gaps import OF_OTHERS, filled
from blockmap.learn.layout import Layout
from blockmap.learn.likely import likely
from blockmap.learn.profiles import ProfileLog
from blockmap.learn.stored import layout_of
from blockmap.store.base import Writer
from blockmap.store.repository import Repository
from blockmap.volume.content import stored_reader

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Made:
    """A bundle that was stored."""

    version: Digest
    label: str
    n: int
    """Of the profile."""
    stored_bytes: int
    blocks: int
    """Of the volume that starts are expected to read of it."""


def lookup_in(repository: Repository, root: Root) -> Lookup | None:
    """Says what finding a path reads in the volume `root`; None where it has no file system."""
    try:
        return Lookup(stored_reader(repository, root))
    except ImageError as error:
        _log.info("profiles are carried without the file system's own blocks: %s", error)
        return None


def carry_to(
    repository: Repository, lookup: Lookup | None, layout: Layout, items: Sequence[Item], source: Digest
) -> list[Item]:
    """The items of a profile of the volume `source` on that of `layout`, with what finding its files reads there."""
    try:
        sizes = {file.path: file.size for file in repository.file_map(source)}
    except (NotFound, Corrupt) as error:
        _log.info("files that changed are carried as they were: %s", error)
        sizes = {}
    return carry(items, source, layout, lookup, sizes)


def put_bundle(store: Writer, version: Digest, root: Root, layout: Layout, profile: Profile) -> Made | None:
    """Makes and stores the bundle of a profile on a version; None where it has one already, or nothing of the profile."""
    log, repository = ProfileLog(store), Repository(store)
    if log.has_bundle(version, profile.label, profile.n):
        return None
    carried = profile.root != root.digest
    besides: list[Run] = []
    if carried:
        lookup = lookup_in(repository, root)
        items = filled(carry_to(repository, lookup, layout, profile.items, profile.root), layout, OF_OTHERS)
        if lookup is not None:
            besides = [(block, 1) for block in lookup.further(item.path for item in items if item.path is not None)]
        besides += likely(items, layout, lookup)
    else:
        items = filled(profile.items, layout)
    if not items:
        return None
    parts, _ = bundles.build(repository, root, readings(items), layout.blocks, carried, besides)
    log.put_bundle(version, profile.label, profile.n, parts)
    return Made(version, profile.label, profile.n, sum(map(len, parts)), sum(item.blocks for item in items))


def put_bundles(store: Writer, repo: str, version: Digest, root: Root) -> list[Made]:
    """Makes the bundles of all profiles of a repository on a version, and tells the names that stand for it."""
    log = ProfileLog(store)
    layout: Layout | None = None
    made = []
    for label, n in log.labels(repo).items():
        if log.has_bundle(version, label, n):
            continue
        try:
            profile = log.get(repo, label, n)
        except BlockmapError as error:
            _log.warning("version %s starts without what was learnt for %s: %s", version.hex(), label, error)
            continue
        layout = layout or layout_of(Repository(store), root)
        one = put_bundle(store, version, root, layout, profile)
        made += [one] if one is not None else []
    if made:
        log.advise(repo, version)
    return made
