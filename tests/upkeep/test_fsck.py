"""A check of a whole store finds what is damaged or lost, by name, and mends what can be mended; garbage is no error."""

import secrets
from pathlib import Path

import pytest

from blockmap.errors import StoreUnavailable
from blockmap.format import filemap, keys, node, profile
from blockmap.format.digest import Digest
from blockmap.format.node import Inner
from blockmap.format.pack import PackedFrame, PackKind, seal
from blockmap.format.profile import Profile, ProfileItem
from blockmap.format.refs import parse_reference
from blockmap.format.version import Version
from blockmap.image.layer import config_chains
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.packs import Packs, compress, expand, pack_key
from blockmap.store.plan import chunk_at
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.walk import leaves
from blockmap.upkeep.findings import Report
from blockmap.upkeep.fsck import StoreCheck
from blockmap.upkeep.verify import record_faults
from tests.upkeep.collecting import DAY, FORMAT, KEEP, Clocked, check_all, collect, put, remove


def check(store: Clocked, keep: float = KEEP) -> StoreCheck:
    return StoreCheck(store, keep, config_chains, lambda said: None)


def run(store: Clocked, read: bool = False) -> Report:
    return check(store).run(read)


def mended(store: Clocked, report: Report, read: bool = True) -> Report:
    """Mends and checks again, until nothing changes."""
    for _ in range(8):
        check(store).mend(report)
        before, report = report.problems, run(store, read)
        if report.problems in ([], before):
            break
    return report


def version(store: Clocked, name: str) -> Version:
    return find_version(Repository(store), parse_reference(name)).version


def spoil(store: Clocked, key: str, at: int = -40) -> None:
    data = bytearray(store.get(key, 1 << 30))
    data[at] ^= 0x55
    store.delete(key)
    store.create(key, [bytes(data)])


def chunk_packs(store: Clocked, name: str) -> list[Digest]:
    """The packs of the chunks of a version, the first layer's at first."""
    packs = Repository(store).packs
    places = [place for _, leaf in leaves(version(store, name).root, packs.nodes) for place in leaf.placements]
    return list(dict.fromkeys(place.pack for place in places if place is not None))


def copy_pack(store: Clocked, pack: Digest) -> None:
    """Stores all that a pack has once more, in a pack that nothing refers to."""
    packs = Packs(store.get_range)
    head = packs.head(pack)
    frames = []
    for name, place in head.entries:
        if head.kind is PackKind.CHUNKS:
            stored = bytes(packs.stored([chunk_at(name, place)]))
            frames.append(PackedFrame(name, place.codec, stored, place.raw))
        else:
            made = packs.nodes([(name, place)])[0]
            assert not isinstance(made, Exception)
            raw = node.encode(made)
            frames.append(PackedFrame(name, 0, raw, len(raw)))
    made_pack = seal(head.kind, frames, secrets.token_bytes(16))
    store.create(pack_key(made_pack.name), made_pack.parts)


@pytest.mark.parametrize("read", [False, True])
def test_a_sound_store_is_clean_and_nothing_is_written(store: Clocked, read: bool) -> None:
    before = store.list("")
    report = run(store, read)
    assert (report.problems, report.notes, report.faults) == ([], [], [])
    assert (report.names, report.versions) == (2, 2)
    assert report.garbage is not None
    assert (len(report.garbage.old), len(report.garbage.young)) == (0, 0)
    assert set(store.list("")) - set(before) <= {keys.CLOCK}


def test_garbage_is_shown_and_is_no_error(store: Clocked) -> None:
    remove(store, "a")
    store.create("packs/ab/" + "ab" * 32, [b"left by a crash"])
    store.seconds += KEEP + 10
    report = run(store)
    assert report.problems == []
    assert report.garbage is not None
    garbage = {**report.garbage.old, **report.garbage.young}
    assert "packs/ab/" + "ab" * 32 in garbage
    assert len(garbage) > 5
    collect(store)
    store.seconds += 10
    report = run(store, read=True)
    assert (report.problems, report.notes) == ([], [])


def test_lost_chunks_are_stored_again_from_another_pack(store: Clocked) -> None:
    shared = next(pack for pack in chunk_packs(store, "a:1") if pack in chunk_packs(store, "b:1"))
    copy_pack(store, shared)
    store.delete(pack_key(shared))
    report = run(store)
    assert {problem.what for problem in report.problems} == {"a:1", "b:1"}
    assert all("lost or damaged" in problem.message for problem in report.problems)
    assert report.garbage is None, "what is below something lost is not known"
    report = mended(store, report)
    assert report.problems == []
    check_all(store)
    remove(store, "a")
    collect(store)
    check_all(store)
    assert run(store, read=True).problems == []


def test_lost_nodes_are_stored_again_level_by_level(store: Clocked) -> None:
    place = version(store, "a:1").root.placement
    assert place is not None
    copy_pack(store, place.pack)
    store.delete(pack_key(place.pack))
    report = run(store)
    assert [problem.what for problem in report.problems] == ["a:1"]
    assert mended(store, report).problems == []
    check_all(store)


def test_what_no_other_pack_has_is_said_by_name(store: Clocked, tmp_path: Path) -> None:
    (own,) = set(chunk_packs(store, "b:1")) - set(chunk_packs(store, "a:1"))
    store.delete(pack_key(own))
    report = mended(store, run(store))
    assert [problem.what for problem in report.problems] == ["b:1"]
    assert "--from SOURCE" in report.problems[0].action
    record_faults(store, report.faults)
    put(store, "b", tmp_path)
    assert run(store, read=True).problems == []


def test_a_flipped_bit_is_found_by_reading_and_known_from_then_on(store: Clocked) -> None:
    (own,) = set(chunk_packs(store, "b:1")) - set(chunk_packs(store, "a:1"))
    copy_pack(store, own)
    spoil(store, pack_key(own))
    assert run(store).problems == []
    report = run(store, read=True)
    assert [problem.what for problem in report.problems] == ["b:1"]
    assert report.faults[0].packs == (own,)
    record_faults(store, report.faults)
    report = run(store)
    assert [problem.what for problem in report.problems] == ["b:1"]
    assert mended(store, report).problems == []
    check_all(store)


def test_a_pack_that_is_too_short_is_found_without_reading_it(store: Clocked) -> None:
    (own,) = set(chunk_packs(store, "b:1")) - set(chunk_packs(store, "a:1"))
    data = store.get(pack_key(own), 1 << 30)
    store.delete(pack_key(own))
    store.create(pack_key(own), [data[:-10]])
    report = run(store)
    assert [problem.what for problem in report.problems] == ["b:1"]
    assert len(report.faults) == 1, "all but the last chunk are whole"


def test_a_placement_that_rots_is_found_and_got_over(store: Clocked) -> None:
    """A node's digest does not cover where its children are, and the node is stored as it is."""
    root = version(store, "a:1").root
    assert root.placement is not None
    found = Repository(store).node(root.digest, root.placement)
    assert isinstance(found, Inner)
    spoil(store, pack_key(root.placement.pack), root.placement.offset + root.placement.stored - 12)
    report = run(store)
    assert [problem.what for problem in report.problems] == ["a:1"]
    assert mended(store, report).problems == []
    check_all(store)


def test_the_record_of_a_version_comes_from_a_hint(store: Clocked) -> None:
    name = version(store, "a:1").name
    for harm in (store.delete, lambda key: spoil(store, key)):
        harm(keys.version(name, 1))
        report = run(store)
        assert [problem.what for problem in report.problems] == ["a:1"]
        assert mended(store, report).problems == []
    store.delete(keys.version(name, 1))
    store.delete(keys.name_hint("a", "1"))
    report = mended(store, run(store))
    assert [problem.what for problem in report.problems] == ["a:1"]
    assert "import the image again" in report.problems[0].action


def test_the_newest_entry_of_a_name_comes_from_its_hint(store: Clocked) -> None:
    spoil(store, keys.entry("a", "1", 1))
    report = run(store)
    assert [problem.what for problem in report.problems] == ["a:1"]
    assert mended(store, report).problems == []
    spoil(store, keys.entry("a", "1", 1))
    store.delete(keys.name_hint("a", "1"))
    (problem,) = mended(store, run(store)).problems
    assert "blockmap tag" in problem.action


def test_an_old_entry_that_is_damaged_is_noted(store: Clocked, tmp_path: Path) -> None:
    put(store, "c", tmp_path, "a:1")
    spoil(store, keys.entry("a", "1", 1))
    report = run(store)
    assert report.problems == []
    assert "entry 1 of a:1" in report.notes[0]


def test_derived_objects_are_made_again(store: Clocked) -> None:
    found = version(store, "a:1")
    root = found.root.digest
    files = list(filemap.decode(store.get(keys.filemap(root, 1), 1 << 20), root, expand))
    spoiled = [
        keys.filemap(root, 1),
        keys.hooks(root, 1),
        next(key for key in store.list("oci/") if found.name.hex() in store.get(key).decode()),
        keys.CATALOGUE,
        keys.name_hint("a", "1"),
    ]
    for key in spoiled:
        spoil(store, key)
    report = run(store)
    assert {problem.what for problem in report.problems} == set(spoiled)
    report = mended(store, report)
    assert (report.problems, report.notes) == ([], [])
    again = list(filemap.decode(store.get(keys.filemap(root, 2), 1 << 20), root, expand))
    assert again == files, "as the import made it"


def test_a_damaged_bundle_is_made_again_from_its_profile(store: Clocked, tmp_path: Path) -> None:
    found = version(store, "a:1")
    _, leaf = next(iter(leaves(found.root, Repository(store).packs.nodes)))
    extent = leaf.extents()[0]
    assert extent.chunk is not None
    item = ProfileItem(extent.start, 1, extent.chunk, extent.first, None, 0, 0, 1)
    learnt = Profile("a", "default", 1, found.name, found.root.digest, 1, [item])
    store.create(keys.profile("a", "default", 1), [profile.encode(learnt, compress)])
    put(store, "a", tmp_path)
    (bundle,) = store.list("bundles/")
    spoil(store, bundle)
    assert run(store).problems == [], "its head is sound"
    report = run(store, read=True)
    assert [problem.what for problem in report.problems] == [bundle]
    assert mended(store, report).problems == []
    assert len(store.list("bundles/")) == 2
    spoil(store, keys.profile("a", "default", 1))
    assert [problem.what for problem in run(store).problems] == [keys.profile("a", "default", 1)]


def test_headers_of_layers_cannot_be_made_again(store: Clocked) -> None:
    key = store.list("layers/")[0]
    spoil(store, key)
    report = mended(store, run(store))
    assert {problem.what for problem in report.problems} == {key}
    assert "importing the image again mends it" in report.problems[0].action


def test_pins_and_logs_that_lead_nowhere_are_noted(store: Clocked) -> None:
    gone = Digest(bytes.fromhex("ee" * 32))
    store.create(keys.pin(gone, "clone-1234"), [b""])
    store.create(keys.moved(gone, 1), [b"damaged"])
    store.create("odd/key", [b""])
    report = run(store)
    assert report.problems == []
    assert len(report.notes) == 3
    assert "pin clone-1234 holds version eeee" in report.notes[0]
    assert report.garbage is not None
    collect(store)


def test_what_is_pinned_counts_although_no_name_stands_for_it(store: Clocked) -> None:
    found = version(store, "b:1")
    (own,) = set(chunk_packs(store, "b:1")) - set(chunk_packs(store, "a:1"))
    store.create(keys.pin(found.name, "clone-1234"), [b""])
    NameLog(store).remove(NameTarget("b", "1"), "")
    store.seconds += 40 * DAY
    assert run(store).problems == []
    store.delete(pack_key(own))
    assert [problem.what for problem in run(store).problems] == ["pin clone-1234"]


class Away(Clocked):
    """A store that does not answer for some keys."""

    prefix = "none"

    def get(self, key: str, *most: int) -> bytes:
        return super().get(self._answered(key), *most)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return super().get_range(self._answered(key), start, end)

    def size(self, key: str) -> int:
        return super().size(self._answered(key))

    def _answered(self, key: str) -> str:
        if key.startswith(self.prefix):
            raise StoreUnavailable("no answer")
        return key


@pytest.mark.parametrize("prefix", ["names/a/", "hints/names/a/", "packs/", "filemaps/", "oci/", "versions/"])
def test_a_store_that_stops_answering_is_no_damage(prefix: str, tmp_path: Path) -> None:
    """The check ends with the store's error, and nothing is mended for it."""
    store = Away()
    store.create(keys.FORMAT, [FORMAT])
    put(store, "a", tmp_path)
    store.prefix = prefix
    with pytest.raises(StoreUnavailable, match="no answer"):
        run(store)
