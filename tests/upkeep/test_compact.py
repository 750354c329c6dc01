"""Packs that are mostly garbage: what is needed of them is moved to new packs, and whoever knows the old place finds it."""

from collections.abc import Callable
from pathlib import Path

import pytest

import blockmap.upkeep.verify
from blockmap.errors import Corrupt
from blockmap.format import keys
from blockmap.format.digest import Digest
from blockmap.format.pack import PackedFrame, PackKind
from blockmap.format.placement import Placement
from blockmap.format.refs import parse_reference
from blockmap.image.importer import Importer
from blockmap.image.layer import config_chains
from blockmap.image.sources import open_source
from blockmap.publish.pack_health import PackHealth
from blockmap.publish.reliance import tag_version
from blockmap.store.names import NameTarget
from blockmap.store.opening import parse_format
from blockmap.store.pack_logs import read_moved
from blockmap.store.packs import pack_key
from blockmap.store.plan import chunk_at
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves
from blockmap.upkeep.collect import Collector
from blockmap.upkeep.fsck import StoreCheck
from blockmap.upkeep.rewrite import PackRewriter, has_moved
from tests.image.builder import bulk
from tests.image.layouts import archive, file, layout
from tests.upkeep.collecting import FORMAT, GRACE, KEEP, Clocked, collector, remove

SHARED = archive([file("shared", bulk(1, 400_000))])
OWN = {"big": bulk(2, 3_000_000), "small": bulk(3, 50_000), "third": bulk(4, 60_000)}


def put(store: Clocked, name: str, work: Path, to: str = "") -> None:
    where = work / name
    source = where if where.exists() else layout(where, [SHARED, archive([file("own", OWN[name])])])
    found = open_source(f"oci:{source}", platform="linux/amd64", work=work)
    try:
        Importer(store, parse_format(FORMAT, store.url), lambda said: None).run(found, to or name, "1")
    finally:
        found.close()


@pytest.fixture
def store(tmp_path: Path) -> Clocked:
    """A store with small:1, most of whose chunks lie in a pack of big:1, which has been removed."""
    made = Clocked()
    made.create(keys.FORMAT, [FORMAT])
    for name in ("big", "small"):
        put(made, name, tmp_path)
    remove(made, "big")
    made.seconds += KEEP + GRACE + 1
    return made


def sparse_pack(store: Clocked) -> Digest:
    (pack,) = collector(store).plan(collector(store).state()).sparse
    return pack


def condemn(store: Clocked) -> Collector:
    one = collector(store)
    plan = one.plan(one.state())
    assert one.condemn(one.state(), plan)
    copied, errors = one.compact(plan)
    assert errors == []
    assert copied == plan.copied
    store.seconds += GRACE + 1
    return one


def clean(store: Clocked) -> None:
    report = StoreCheck(store, KEEP, config_chains, lambda said: None).run(read=True)
    assert report.problems == []
    assert report.notes == []


def content(store: Clocked, name: str, size: int = 20 << 20) -> Callable[[], bytes]:
    """Returns a reader of a version as it is known now, whatever becomes of the store."""
    read = stored_reader(Repository(store), find_version(Repository(store), parse_reference(name)).version.root)
    return lambda: read(0, size)


def test_a_pack_that_is_mostly_garbage_is_replaced(store: Clocked) -> None:
    pack = sparse_pack(store)
    before = content(store, "small:1")()
    one = condemn(store)
    assert store.exists(pack_key(pack))
    clean(store)
    one.sweep(one.state())
    assert not store.exists(pack_key(pack))
    assert store.list("moved/") == [keys.moved(pack, 1)]
    assert content(store, "small:1")() == before
    clean(store)
    one = collector(store)
    plan = one.plan(one.state())
    assert (plan.garbage, dict(plan.sparse)) == ({}, {})


def test_what_was_moved_is_checked_where_it_is_and_nowhere_else(
    store: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of packs that are gone are not looked for one by one."""
    one = condemn(store)
    one.sweep(one.state())
    monkeypatch.setattr(blockmap.upkeep.verify, "_read_again", None)
    clean(store)


def test_a_copy_that_is_condemned_itself_is_none(store: Clocked) -> None:
    pack = sparse_pack(store)
    condemn(store)
    (places,) = moved(store)
    name, place = next(iter(places.items()))
    assert PackHealth(store, {}).moved(name, pack) == place
    assert PackHealth(store, {}, {pack_key(place.pack)}).moved(name, pack) is None


def test_a_pack_stays_if_something_that_is_needed_is_not_in_its_head(store: Clocked) -> None:
    """A tree may have a placement that rotted: nobody knows what it stood for."""
    pack = sparse_pack(store)
    one = condemn(store)
    marked = one.plan(one.state()).marked
    packs = Repository(store).packs
    assert has_moved(packs, marked, pack, PackHealth(store, {}))
    _, place = packs.head(pack).entries[0]
    marked.use.add(Digest(bytes(32)), place)
    assert not has_moved(packs, marked, pack, PackHealth(store, {}))


def test_what_is_half_needed_stays(tmp_path: Path) -> None:
    store = Clocked()
    store.create(keys.FORMAT, [FORMAT])
    put(store, "big", tmp_path)
    store.seconds += 10 * KEEP
    assert not collector(store).plan(collector(store).state()).sparse
    put(store, "small", tmp_path)
    remove(store, "big")
    assert not collector(store).plan(collector(store).state()).sparse, "big:1 is kept for a while"


def test_an_import_puts_what_it_shares_with_a_pack_that_goes_where_it_stays(store: Clocked, tmp_path: Path) -> None:
    pack = sparse_pack(store)
    one = condemn(store)
    put(store, "third", tmp_path)
    packs = Repository(store).packs
    own = [
        leaf
        for _, leaf in leaves(find_version(Repository(store), parse_reference("third:1")).version.root, packs.nodes)
    ]
    assert pack not in {place.pack for leaf in own for place in leaf.placements if place is not None}
    put(store, "big", tmp_path)
    one.sweep(one.state())
    assert not store.exists(pack_key(pack))
    clean(store)


def test_what_comes_back_before_the_sweep_keeps_its_pack(store: Clocked) -> None:
    """A name stands for the removed version again, whose chunks were not moved."""
    pack = sparse_pack(store)
    before = content(store, "big:1@{1}")()
    one = condemn(store)
    tag_version(store, parse_reference("big:1@{1}"), NameTarget("back", "1"), "")
    one.sweep(one.state())
    assert store.exists(pack_key(pack))
    assert content(store, "back:1")() == before
    clean(store)


def test_a_collector_that_dies_before_it_has_moved_anything_costs_nothing(store: Clocked) -> None:
    pack = sparse_pack(store)
    one = collector(store)
    assert one.condemn(one.state(), one.plan(one.state()))
    store.seconds += GRACE + 1
    one.sweep(one.state())
    assert store.exists(pack_key(pack))
    clean(store)
    store.seconds += GRACE + 1
    one = condemn(store)
    one.sweep(one.state())
    assert not store.exists(pack_key(pack))
    clean(store)


def test_a_pack_with_damage_is_left_alone(store: Clocked) -> None:
    pack = sparse_pack(store)
    data = store.get(pack_key(pack), 1 << 30)
    head = Repository(store).packs.head(pack)
    at = head.entries[0][1].offset + 100
    store.delete(pack_key(pack))
    store.create(pack_key(pack), [data[:at], bytes([data[at] ^ 1]), data[at + 1 :]])
    store.seconds += KEEP
    one = collector(store)
    plan = one.plan(one.state())
    assert one.condemn(one.state(), plan)
    copied, errors = one.compact(plan)
    assert copied == 0
    assert isinstance(errors[0], Corrupt)
    store.seconds += GRACE + 1
    one.sweep(one.state())
    assert store.exists(pack_key(pack))


def test_after_many_moves_a_reader_takes_few_steps(store: Clocked, tmp_path: Path) -> None:
    """Readers follow four steps at most; each move tells the packs that led to its pack as well."""
    before, read = content(store, "small:1")(), content(store, "small:1")
    for number in range(5):
        if number:
            refill(store, number)
        one = condemn(store)
        one.sweep(one.state())
    assert read() == before
    assert content(store, "small:1")() == before
    clean(store)


def refill(store: Clocked, number: int) -> None:
    """Moves what was moved last on to a pack that has much garbage besides."""
    packs = Repository(store).packs
    stored = filter(None, map(keys.parse_pack, store.list("packs/")))
    (newest,) = (
        pack for pack in stored if pack in {place.pack for places in moved(store) for place in places.values()}
    )
    rewriter = PackRewriter(store)
    for name, place in packs.head(newest).entries:
        data = bytes(packs.stored([chunk_at(name, place)]))
        rewriter.add(PackKind.CHUNKS, PackedFrame(name, place.codec, data, place.raw), {newest})
    junk = bulk(100 + number, 3_000_000)
    rewriter.add(PackKind.CHUNKS, PackedFrame(Digest(junk[:32]), 0, junk, len(junk)), set())
    rewriter.finish()
    store.delete(pack_key(newest))
    store.seconds += KEEP


def moved(store: Clocked) -> list[dict[Digest, Placement]]:
    logs = {found[0] for found in map(keys.parse_moved, store.list("moved/")) if found is not None}
    return [places for pack in logs for places in read_moved(store, pack)]


def test_two_collectors_move_a_pack_once(store: Clocked) -> None:
    one, two = collector(store), collector(store)
    state = one.state()
    plans = one.plan(state), two.plan(state)
    assert one.condemn(state, plans[0])
    assert not two.condemn(state, plans[1])
    packs = store.list("packs/")
    one.compact(plans[0])
    assert len(store.list("packs/")) == len(packs) + 1
