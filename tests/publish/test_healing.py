"""What is acknowledged is there: lost and damaged parts of packs are stored again by the next import that has them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.errors import StoreUnavailable
from blockmap.format import keys, pack_log
from blockmap.format.digest import Digest
from blockmap.format.placement import Placement
from blockmap.format.tree import Root
from blockmap.format.version import Version
from blockmap.image.importer import Importer, Summary
from blockmap.image.sources import open_source
from blockmap.store.base import Pruner
from blockmap.store.memory import MemoryStore
from blockmap.store.names import NameReader
from blockmap.store.opening import create_store, parse_format
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves
from blockmap.upkeep.reach import Fault
from blockmap.upkeep.verify import check_version, record_faults
from tests.image.builder import bulk
from tests.image.layouts import archive, directory, file, layout
from tests.store.faulty import Faulty

BASE = [directory("usr"), *(file(f"usr/file-{n}", bulk(n, 20_000)) for n in range(60))]
MORE = [file("program", bulk(700, 300_000)), file("usr/file-1", bulk(701, 20_000))]


@pytest.fixture(params=["directory", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Pruner:
    made, _ = create_store(str(tmp_path / "store"))
    if request.param == "directory":
        return made
    memory = MemoryStore()
    memory.create(keys.FORMAT, [made.get(keys.FORMAT)])
    return memory


@pytest.fixture
def one(tmp_path: Path) -> str:
    return f"oci:{layout(tmp_path / 'one', [archive(BASE), archive(MORE)])}"


@pytest.fixture
def two(tmp_path: Path) -> str:
    """Another image upon the same base."""
    return f"oci:{layout(tmp_path / 'two', [archive(BASE), archive([file('other', bulk(800, 90_000))])])}"


def importer(store: Pruner, warnings: list[str] | None = None) -> Importer:
    form = parse_format(store.get(keys.FORMAT), store.url)
    return Importer(store, form, ([] if warnings is None else warnings).append)


def imported(store: Pruner, source: str, name: str, warnings: list[str] | None = None) -> Summary:
    found = open_source(source, platform="linux/amd64", work=Path("/nonexistent"))
    try:
        return importer(store, warnings).run(found, *name.split(":"))
    finally:
        found.close()


def faults(store: Pruner, version: Digest, number: int = 1) -> list[Fault]:
    repository = Repository(store)
    return list(check_version(repository, repository.version_at(version, number)))


def named(store: Pruner, name: str) -> Version:
    entry = NameReader(store).newest(*name.split(":"))
    assert entry is not None
    assert entry.version is not None
    return Repository(store).version_at(entry.version, entry.number)


def chunks(store: Pruner, version: Version) -> dict[Digest, Placement]:
    """Returns the chunks of a version and where they are."""
    return {
        name: place
        for root in (version.root, version.extra)
        for _, leaf in leaves(root, Repository(store).packs.nodes)
        for name, place in zip(leaf.chunks, leaf.placements, strict=True)
        if place is not None
    }


def contents(store: Pruner, root: Root) -> list[bytes]:
    read = stored_reader(Repository(store), root)
    return [read(span * (16 << 20), 16 << 20) for span, _ in leaves(root, Repository(store).packs.nodes)]


def delete(data: bytes, place: Placement) -> bytes | None:
    return None


def cut(data: bytes, place: Placement) -> bytes | None:
    return data[:-100]


def flip(data: bytes, place: Placement) -> bytes | None:
    changed = bytearray(data)
    changed[place.offset + place.stored // 2] ^= 1
    return bytes(changed)


Spoil = Callable[[bytes, Placement], bytes | None]
every_way = pytest.mark.parametrize("way", [delete, cut, flip])


def spoil(store: Pruner, way: Spoil, place: Placement | None) -> None:
    """Deletes or damages a pack."""
    assert place is not None
    key = keys.pack(place.pack)
    changed = way(store.get(key), place)
    store.delete(key)
    if changed is not None:
        store.create(key, [changed])


def place_of(store: Pruner, version: Version, kind: str) -> Placement | None:
    if kind == "root":
        return version.root.placement
    if kind == "extra":
        return version.extra.placement
    root = version.extra if kind == "hidden chunk" else version.root
    _, leaf = next(iter(leaves(root, Repository(store).packs.nodes)))
    return leaf.placements[-1]


@every_way
@pytest.mark.parametrize("kind", ["chunk", "hidden chunk", "root", "extra"])
def test_what_a_pack_lost_is_stored_again_by_the_next_import(store: Pruner, one: str, kind: str, way: Spoil) -> None:
    first = imported(store, one, "a:1")
    version = named(store, "a:1")
    whole = contents(store, version.root)
    spoil(store, way, place_of(store, version, kind))
    found = faults(store, first.version)
    assert found
    record_faults(store, found)
    again = imported(store, one, "a:1")
    assert (again.root, again.version) == (first.root, first.version)
    assert faults(store, first.version) == [], "as it was written at first"
    assert contents(store, version.root) == contents(store, named(store, "a:1").root) == whole
    before = store.list("")
    third = imported(store, one, "a:1")
    assert (third.number, third.counts.new_chunks) == (0, 0)
    assert store.list("") == before


@every_way
@pytest.mark.parametrize("kind", ["chunk", "root"])
def test_what_was_stored_again_is_lost_again(store: Pruner, one: str, kind: str, way: Spoil) -> None:
    first = imported(store, one, "a:1")
    version = named(store, "a:1")
    place = place_of(store, version, kind)
    assert place is not None
    for _ in range(2):
        at = place
        for key in store.list(f"moved/{place.pack.hex()}/"):
            moved = pack_log.decode_moved(store.get(key), place.pack)
            at = moved.get(version.root.digest) or next(iter(moved.values()))
        spoil(store, way, at)
        found = faults(store, first.version)
        assert found
        record_faults(store, found)
        imported(store, one, "a:1")
        assert faults(store, first.version) == []


@pytest.mark.parametrize("way", [delete, cut])
@pytest.mark.parametrize("kind", ["chunk", "root"])
def test_a_pack_that_is_gone_or_short_needs_no_record(store: Pruner, one: str, kind: str, way: Spoil) -> None:
    first = imported(store, one, "a:1")
    spoil(store, way, place_of(store, named(store, "a:1"), kind))
    imported(store, one, "b:1")
    assert faults(store, first.version) == []


def test_an_importer_records_the_damage_that_it_finds(store: Pruner, one: str) -> None:
    imported(store, one, "a:1")
    version = named(store, "a:1")
    spoil(store, flip, version.root.placement)
    warnings: list[str] = []
    imported(store, one, "a:1", warnings)
    assert version.root.placement is not None
    assert store.list("damaged/") == [keys.damaged(version.root.placement.pack, 1)]
    assert any(version.root.digest.hex() in warning for warning in warnings)


@pytest.mark.parametrize("way", [delete, flip])
def test_another_image_heals_what_it_shares(store: Pruner, one: str, two: str, way: Spoil) -> None:
    other = MemoryStore()
    other.create(keys.FORMAT, [store.get(keys.FORMAT)])
    imported(other, two, "b:1")
    shared = chunks(other, named(other, "b:1")).keys()
    first = imported(store, one, "a:1")
    places = chunks(store, named(store, "a:1"))
    spoil(store, way, next(place for name, place in places.items() if name in shared))
    found = faults(store, first.version)
    record_faults(store, found)
    imported(store, two, "b:1")
    left = {fault.name for fault in faults(store, first.version)}
    assert left == {fault.name for fault in found} - shared
    imported(store, one, "a:1")
    assert faults(store, first.version) == []


@pytest.mark.parametrize("kind", ["root", "extra"])
def test_a_tree_is_healed_from_another_place_where_it_is_whole(store: Pruner, one: str, kind: str) -> None:
    first = imported(store, one, "a:1")
    spoil(store, delete, place_of(store, named(store, "a:1"), kind))
    imported(store, one, "b:1")
    assert named(store, "b:1").root.placement != named(store, "a:1").root.placement
    for key in store.list("moved/"):
        store.delete(key)
    assert faults(store, first.version)
    before = store.list("packs/")
    imported(store, one, "c:1")
    assert faults(store, first.version) == []
    assert store.list("packs/") == before


def test_parts_are_healed_again_when_what_healed_them_is_lost(store: Pruner, one: str) -> None:
    first = imported(store, one, "a:1")
    place = place_of(store, named(store, "a:1"), "chunk")
    before = set(store.list("packs/"))
    spoil(store, delete, place)
    for _ in range(3):
        imported(store, one, "a:1")
        assert faults(store, first.version) == []
        new = set(store.list("packs/")) - before
        assert len(new) == 1
        store.delete(new.pop())
    assert faults(store, first.version)


def test_healing_stays_where_the_import_fails_afterwards(store: Pruner, one: str) -> None:
    first = imported(store, one, "a:1")
    spoil(store, delete, place_of(store, named(store, "a:1"), "root"))

    class NoNames(Faulty):
        def create(self, key: str, parts) -> None:  # type: ignore[no-untyped-def]
            if key.startswith(("versions/", "names/")):
                raise StoreUnavailable("no room")
            super().create(key, parts)

    with pytest.raises(StoreUnavailable):
        imported(NoNames(store), one, "b:1")
    assert faults(store, first.version) == []


def test_no_name_is_made_where_nobody_says_that_the_packs_are_there(store: Pruner, one: str) -> None:
    imported(store, one, "a:1")

    class Mute(Faulty):
        def size(self, key: str) -> int:
            raise StoreUnavailable("no answer")

    with pytest.raises(StoreUnavailable):
        imported(Mute(store), one, "b:1")
    assert NameReader(store).newest("b", "1") is None


def test_source_heals_without_a_name(store: Pruner, one: str, two: str) -> None:
    first = imported(store, one, "a:1")
    names = store.list("names/")
    spoil(store, delete, place_of(store, named(store, "a:1"), "root"))
    spoil(store, delete, Placement(Digest(bytes.fromhex(store.list("packs/")[0][-64:])), 0, 0, 1, 1))
    for source, heals in ((two, False), (one, True)):
        found = open_source(source, platform="linux/amd64", work=Path("/nonexistent"))
        importer(store).heal(found)
        assert (faults(store, first.version) == []) is heals
        assert store.list("names/") == names
