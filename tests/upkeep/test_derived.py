"""Every kind of object of a store: lost or damaged, an image is whole after the next import, and what was damaged is named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.errors import BlockmapError
from blockmap.format import collection, keys, profile
from blockmap.format.collection import CollectionStep, StepKind
from blockmap.format.profile import Profile, ProfileItem
from blockmap.format.refs import parse_reference
from blockmap.image.importer import Importer
from blockmap.image.sources import open_source
from blockmap.store.log import nonce
from blockmap.store.memory import MemoryStore
from blockmap.store.opening import create_store, parse_format
from blockmap.store.packs import compress
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.walk import leaves
from blockmap.upkeep.derived import check_derived
from blockmap.upkeep.verify import check_version, record_faults
from tests.image.builder import bulk
from tests.image.layouts import archive, directory, file, layout

BASE = [directory("usr"), *(file(f"usr/file-{n}", bulk(n, 20_000)) for n in range(30))]
MORE = [file("program", bulk(700, 300_000)), file("usr/file-1", bulk(701, 20_000))]


class Site:
    """A store in memory, and one image that is imported into it."""

    def __init__(self, source: str, objects: dict[str, bytes]) -> None:
        self.source = source
        self.store = MemoryStore()
        for key, data in objects.items():
            self.store.create(key, [data])
        self.said: list[str] = []

    def objects(self) -> dict[str, bytes]:
        return {key: self.store.get(key) for key in self.store.list("")}

    def swap(self, key: str, data: bytes | None) -> None:
        """Puts other bytes, or nothing, in the place of an object."""
        self.store.delete(key)
        if data is not None:
            self.store.create(key, [data])

    def do(self, act: Callable[[], object]) -> None:
        """Does something that may fail, and notes why."""
        try:
            act()
        except BlockmapError as error:
            self.said.append(str(error))

    def put(self) -> None:
        found = open_source(self.source, platform="linux/amd64", work=Path("/nonexistent"))
        form = parse_format(self.store.get(keys.FORMAT), self.store.url)
        Importer(self.store, form, self.said.append).run(found, "a", "1", keeps_blobs=True)

    def verify(self) -> None:
        repository = Repository(self.store)
        found = find_version(repository, parse_reference("a:1"))
        faults = list(check_version(repository, found.version))
        record_faults(self.store, faults)
        self.said += [fault.message for fault in faults]
        source = open_source(self.source, platform="linux/amd64", work=Path("/nonexistent"))
        chains = [own.chain for own in source.layers]  # type: ignore[union-attr]
        self.said += (wrong.message for wrong in check_derived(self.store, found.name, found.version, chains))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    where = tmp_path_factory.mktemp("site")
    made, _ = create_store(str(where / "store"))
    source = f"oci:{layout(where / 'image', [archive(BASE), archive(MORE)])}"
    site = Site(source, {keys.FORMAT: made.get(keys.FORMAT)})
    site.put()
    repository = Repository(site.store)
    found = find_version(repository, parse_reference("a:1"))
    _, leaf = next(iter(leaves(found.version.root, repository.packs.nodes)))
    extent = leaf.extents()[0]
    assert extent.chunk is not None
    item = ProfileItem(extent.start, 1, extent.chunk, extent.first, None, 0, 0, 1)
    learnt = Profile("a", "default", 1, found.name, found.version.root.digest, 1, [item])
    site.store.create(keys.profile("a", "default", 1), [profile.encode(learnt, compress)])
    site.put()
    site.verify()
    assert site.said == []
    place = leaf.placements[0]
    assert place is not None
    key = keys.pack(place.pack)
    site.swap(key, flipped(site.store.get(key), place.offset + place.stored // 2))
    site.verify()
    site.put()
    site.store.create(
        keys.collection(1), [collection.encode(CollectionStep(1, StepKind.CONDEMN, nonce(), "host", 1_700_000_000))]
    )
    site.said.clear()
    site.verify()
    assert site.said == []
    return site


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DERIVED = ("hooks", "filemaps", "layers", "oci", "bundles", "recipes", "blobs")
HEALED = ("packs", "versions", "damaged", "moved")
KINDS = ("format", "names", "profiles", "hints", "gc", *DERIVED, *HEALED)


def test_these_are_all_kinds_that_an_image_has(site: Site) -> None:
    assert {key.partition("/")[0] for key in site.objects()} == set(KINDS)


@pytest.mark.parametrize("way", ["delete", "flip", "cut"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_object_is_whole_after_the_next_import_or_told_by_name(site: Site, kind: str, way: str) -> None:
    whole = site.objects()
    for key in [key for key in whole if key.partition("/")[0] == kind]:
        data = whole[key]
        spoilt = {
            "delete": None,
            "flip": flipped(data, len(data) - 100 if kind == "bundles" else len(data) * 2 // 3),  # in a bundle's blocks
            "cut": data[:-10],
        }[way]
        here = Site(site.source, whole)
        here.swap(key, spoilt)
        here.do(here.verify)
        here.do(here.put)
        said, here.said = here.said, []
        here.do(here.verify)
        assert here.said == [], "whole after one import"
        if kind == "hints":
            assert here.store.get(key) == data
        elif way == "delete" and kind in (*DERIVED, "names"):
            assert here.store.get(key)
        elif way != "delete" and kind not in (*HEALED, "gc"):  # the log of collections goes on without an entry
            told = {
                "format": key,
                "blobs": key.rpartition("/")[0],
                "profiles": "profile 1 of a+default",
                "names": "entry 1 of a:1",
            }.get(kind, key)
            assert any(told in text for text in said)
