"""Garbage: what is needed stays whatever happens, what is not goes, and writers who sleep lose nothing without a word."""

from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from blockmap.errors import Collected, Corrupt, HostError, NotFound
from blockmap.format import keys
from blockmap.format.collection import StepKind
from blockmap.format.digest import Digest
from blockmap.format.refs import parse_reference
from blockmap.image.layer import config_chains
from blockmap.publish.reliance import tag_version
from blockmap.store.collections import CollectionLog, CollectionReader, CollectionState
from blockmap.store.documents import find_document
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from blockmap.store.numbered import read_numbers
from blockmap.store.pack_logs import record_moved
from blockmap.store.repository import Repository
from blockmap.store.resolver import by_digest, find_version
from tests.upkeep.collecting import (
    DAY,
    FORMAT,
    GRACE,
    KEEP,
    Clocked,
    check_all,
    collect,
    collector,
    faults,
    put,
    remove,
)


def kinds(store: Clocked) -> dict[str, int]:
    found: dict[str, int] = {}
    for key in store.list(""):
        kind = key.partition("/")[0]
        found[kind] = found.get(kind, 0) + 1
    return found


def test_what_names_stand_for_stays(store: Clocked) -> None:
    store.seconds += 100 * DAY
    before = store.list("")
    plan = collector(store).plan(collector(store).state())
    assert (plan.garbage, plan.young) == ({}, {})
    assert plan.marked.names == {"a:1": 1, "b:1": 1}
    assert set(store.list("")) - set(before) == {keys.CLOCK}


def test_what_nothing_needs_goes(store: Clocked, tmp_path: Path) -> None:
    only = Clocked()
    only.create(keys.FORMAT, [FORMAT])
    put(only, "b", tmp_path)
    remove(store, "a")
    assert collect(store) > 5
    left = kinds(store)
    assert {kind: left.get(kind, 0) for kind in ("versions", "filemaps", "hooks", "oci")} == {
        kind: kinds(only).get(kind, 0) for kind in ("versions", "filemaps", "hooks", "oci")
    }
    assert faults(store, "b:1") == []
    assert collector(store).plan(collector(store).state()).garbage == {}
    assert [len(CollectionReader(store).step(n).keys) > 0 for n in (1, 2, 3)] == [True, False, False]


def test_what_leads_from_a_shared_layer_leads_to_what_stays(store: Clocked) -> None:
    repository = Repository(store)
    stays = find_version(repository, parse_reference("b:1"))
    for name in "ab":  # the record of the shared layer names the first that was imported
        config = find_version(repository, parse_reference(f"{name}:1")).version.config
        (shared, _) = config_chains(config)
        assert store.exists(keys.layer(shared, 1))
    remove(store, "a")
    collect(store)
    assert not store.exists(keys.layer(shared, 1))
    assert stays.name in store.get(keys.layer(shared, 2), 1 << 20)


def test_a_name_can_be_taken_back_as_long_as_it_is_kept(store: Clocked, tmp_path: Path) -> None:
    store.seconds += 10 * DAY
    put(store, "c", tmp_path, "a:1")
    store.seconds += KEEP - 10
    one = collector(store)
    assert one.plan(one.state()).garbage == {}
    tag_version(store, parse_reference("a:1@{1}"), NameTarget("old", "1"), "")
    store.seconds += 100
    assert one.plan(one.state()).garbage == {}, "another name stands for it"
    remove(store, "old")
    collect(store)
    with pytest.raises(NotFound):
        find_version(Repository(store), parse_reference("a:1@{1}"))
    check_all(store)
    one = collector(store, 1000 * DAY)
    assert one.plan(one.state()).garbage == {}, "what was collected before is missed by nobody"


def test_pins_keep_a_version(store: Clocked) -> None:
    version = find_version(Repository(store), parse_reference("a:1")).name
    remove(store, "a")
    store.seconds += 10 * DAY
    today = int(store.seconds // DAY)
    store.create(keys.pin(version, f"host.{today}"), [b""])
    one = collector(store)
    assert one.plan(one.state()).garbage == {}
    store.create(keys.pin(version, "clone-web"), [b""])
    store.seconds += 10 * DAY
    assert one.plan(one.state()).garbage == {keys.pin(version, f"host.{today}"): 0}
    store.delete(keys.pin(version, "clone-web"))
    assert keys.version(version, 1) in one.plan(one.state()).garbage


def test_what_is_young_may_be_in_the_making(store: Clocked) -> None:
    store.seconds += 10 * DAY
    store.create("packs/ab/" + "ab" * 32, [b"being written"])
    one = collector(store)
    plan = one.plan(one.state())
    assert (len(plan.garbage), len(plan.young)) == (0, 1)
    store.seconds += GRACE + 1
    assert len(one.plan(one.state()).garbage) == 1


def test_damage_stops_a_collection_before_anything_is_deleted(store: Clocked) -> None:
    remove(store, "a")
    pack = next(
        place.pack
        for place in [find_version(Repository(store), parse_reference("b:1")).root.placement]
        if place is not None
    )
    kept = store.get(f"packs/{pack.hex()[:2]}/{pack.hex()}", 1 << 30)
    store.delete(f"packs/{pack.hex()[:2]}/{pack.hex()}")
    store.seconds += 10 * DAY
    one = collector(store)
    with pytest.raises(Corrupt, match="nothing is deleted"):
        one.plan(one.state())
    store.create(f"packs/{pack.hex()[:2]}/{pack.hex()}", [kept])
    store.seconds += 10 * DAY
    assert one.condemn(one.state(), one.plan(one.state()))
    store.seconds += GRACE + 1
    store.delete(f"packs/{pack.hex()[:2]}/{pack.hex()}")
    before = store.list("packs/")
    with pytest.raises(Corrupt, match="nothing is deleted"):
        one.sweep(one.state())
    assert store.list("packs/") == before
    store.create(f"packs/{pack.hex()[:2]}/{pack.hex()}", [kept])
    assert one.sweep(one.state()).objects > 5, "another run goes on"
    check_all(store)


def test_packs_that_have_what_was_lost_are_needed(store: Clocked) -> None:
    root = find_version(Repository(store), parse_reference("b:1")).root
    place = root.placement
    assert place is not None
    other = Digest(bytes.fromhex("cd" * 32))
    record_moved(store, place.pack, {root.digest: place._replace(pack=other)})
    store.create(f"packs/cd/{other.hex()}", [b"healed"])
    record_moved(store, Digest(bytes.fromhex("ee" * 32)), {Digest(bytes(32)): place})
    store.seconds += 10 * DAY
    one = collector(store)
    assert list(one.plan(one.state()).garbage) == [keys.moved(Digest(bytes.fromhex("ee" * 32)), 1)]


def test_a_deleted_record_of_a_version_is_not_used_again(store: Clocked, tmp_path: Path) -> None:
    version = find_version(Repository(store), parse_reference("a:1")).name
    remove(store, "a")
    collect(store)
    put(store, "a", tmp_path)
    entry = NameLog(store).newest("a", "1")
    assert entry is not None
    assert (entry.version, entry.number) == (version, 2), "a collector that slept may still delete the first"
    assert not store.exists(keys.version(version, 1))
    collect_again = collector(store)
    collect_again.condemn(collect_again.state(), collect_again.plan(collect_again.state()))
    check_all(store)


def test_what_is_condemned_may_be_relied_on(store: Clocked, tmp_path: Path) -> None:
    remove(store, "a")
    remove(store, "b")
    store.seconds += 2 * DAY
    one = collector(store)
    assert one.condemn(one.state(), one.plan(one.state()))
    put(store, "c", tmp_path)  # its base layer is that of what is condemned
    store.seconds += GRACE + 1
    put(store, "b", tmp_path)
    one.sweep(one.state())
    check_all(store)
    assert find_version(Repository(store), parse_reference("b:1"))


def test_one_of_two_collectors_wins(store: Clocked) -> None:
    remove(store, "a")
    store.seconds += 2 * DAY
    one, two = collector(store), collector(store)
    state = one.state()
    plan = one.plan(state)
    assert one.condemn(state, plan)
    assert not two.condemn(state, plan)
    store.seconds += GRACE + 1
    state = one.state()
    assert one.sweep(state).objects > 5
    with pytest.raises(HostError, match="another host"):
        two.sweep(state)
    check_all(store)


def test_a_tag_brings_back_what_is_condemned(store: Clocked, tmp_path: Path) -> None:
    put(store, "c", tmp_path, "a:1")
    store.seconds += 2 * DAY
    one = collector(store)
    assert one.condemn(one.state(), one.plan(one.state()))
    tag_version(store, parse_reference("a:1@{1}"), NameTarget("old", "1"), "")
    store.seconds += GRACE + 1
    assert one.sweep(one.state()).objects == 0
    assert faults(store, "old:1") == []


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_damaged_entry_of_the_log_stops_nobody(store: Clocked, tmp_path: Path, n: int) -> None:
    remove(store, "a")
    store.seconds += 2 * DAY
    one = collector(store)
    steps = [
        lambda: one.condemn(one.state(), one.plan(one.state())),
        lambda: CollectionLog(store).append(one.state(), StepKind.SWEEP, condemned=1),
        lambda: one.sweep(one.state()),
    ]
    for step in steps[:n]:
        step()
        store.seconds += GRACE + 1
    key = keys.collection(n)
    store.delete(key)
    store.create(key, [b"damaged"])
    put(store, "c", tmp_path)
    put(store, "a", tmp_path)
    check_all(store)
    remove(store, "b")
    assert collect(store) >= 1
    check_all(store)
    with pytest.raises(Collected, match="damaged"):
        CollectionReader(store).check(CollectionState(n - 1), set)


def test_documents_lead_to_what_stays(store: Clocked, tmp_path: Path) -> None:
    """Of two versions with one manifest, the one that the record names goes."""
    repository = Repository(store)
    found = find_version(repository, parse_reference("a:1"))
    manifest = found.version.manifest
    assert manifest is not None
    digest = sha256(manifest).digest()
    numbered = read_numbers(store, partial(keys.oci, digest), 1 << 20)
    assert find_document(repository, digest, numbered) is not None
    draft = EntryDraft.of(found.version, 1)
    NameLog(store).set(NameTarget("again", "1"), draft)
    remove(store, "a")
    store.seconds += 2 * DAY
    one = collector(store)
    assert one.plan(one.state()).garbage == {}
    assert by_digest(repository, parse_reference(f"again@sha256:{digest.hex()}"), Digest(digest)).name == found.name
