"""Whoever is stopped at any step for longer than the grace, while others import, commit and collect, loses nothing: it ends
well, or with an error that says so, and the store is clean either way."""

import time
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from blockmap.commit.publisher import Publisher
from blockmap.commit.task import PublishTask
from blockmap.errors import BlockmapError, Collected, NotFound
from blockmap.format import BLOCK, keys
from blockmap.format.digest import Digest
from blockmap.format.pack import PackedFrame, PackKind, seal
from blockmap.format.refs import parse_reference
from blockmap.image.importer import Importer
from blockmap.image.layer import config_chains
from blockmap.image.sources import open_source
from blockmap.publish.reliance import tag_version
from blockmap.store.base import Pruner
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.opening import parse_format
from blockmap.store.packs import pack_key
from blockmap.store.pins import pin_version
from blockmap.store.plan import chunk_at
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves
from blockmap.upkeep.collect import Collector
from blockmap.upkeep.fsck import StoreCheck
from blockmap.volume.clone_table import CaptureDraft, CloneTable
from blockmap.volume.overlay import Kind
from blockmap.volume.scratch import ScratchFile, layer_file
from tests.image.builder import bulk
from tests.image.layouts import archive, file, layout
from tests.store.sleeping import SleepingStore
from tests.upkeep.collecting import DAY, FORMAT, GRACE, Clocked

SHARED = archive([file("shared", bulk(1, 400_000))])
OWN = {"big": bulk(2, 2_500_000), "small": bulk(3, 50_000), "third": bulk(4, 60_000)}


class Site:
    """Images that stores are filled with."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._made: Clocked | None = None
        self.sources = {
            name: f"oci:{layout(where / name, [SHARED, archive([file('own', own)])])}" for name, own in OWN.items()
        }

    def put(self, store: Pruner, name: str, to: str = "") -> None:
        found = open_source(self.sources[name], platform="linux/amd64", work=self._where)
        repo, tag = (to or f"{name}:1").split(":")
        try:
            Importer(store, parse_format(FORMAT, store.url), lambda said: None).run(found, repo, tag)
        finally:
            found.close()

    def store(self) -> Clocked:
        """A store with big:1, and small:1, which shares a pack with it."""
        if self._made is None:
            self._made = Clocked()
            self._made.create(keys.FORMAT, [FORMAT])
            for name in ("big", "small"):
                self.put(self._made, name)
        return self._made.copy()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("images"))


def condemn(store: Pruner, keep: float = 0.0) -> None:
    one = Collector(store, keep, GRACE, config_chains)
    state = one.state()
    plan = one.plan(state)
    if (plan.garbage or plan.sparse) and one.condemn(state, plan):
        one.compact(plan)


def sweep(store: Pruner, keep: float = 0.0) -> None:
    one = Collector(store, keep, GRACE, config_chains)
    state = one.state()
    if state.condemnation is not None:
        one.sweep(state)


def collect(store: Clocked) -> None:
    """Ends the collection that is open, and makes another from beginning to end."""
    for act in (sweep, condemn, sweep):
        store.seconds += GRACE + 1
        act(store)


def remove(store: Pruner, name: str) -> None:
    repo, tag = name.split(":")
    NameLog(store).remove(NameTarget(repo, tag), "")


def clean(store: Clocked) -> None:
    report = StoreCheck(store, 0.0, config_chains, lambda said: None).run(read=False)
    assert report.problems == []
    assert all("mends it" in note for note in report.notes), "hints and the catalogue may be those of who was late"


def at_each_step(
    make: Callable[[], Clocked],
    act: Callable[[Pruner], object],
    meanwhile: Callable[[Clocked], object],
    every: int = 1,
    after: Callable[[Clocked], object] = clean,
) -> tuple[int, list[BlockmapError]]:
    """Has `act` sleep at one step after another; returns how often, and the errors with which it ended."""
    errors: list[BlockmapError] = []
    for number in count():
        store = make()
        asleep = SleepingStore(store, 1 + number * every, lambda store=store: meanwhile(store))
        try:
            act(asleep)
        except BlockmapError as error:
            errors.append(error)
        after(store)
        if not asleep.slept:
            return number, errors
    raise AssertionError("it never ended")


@pytest.mark.parametrize("to", ["small:1", "new:1"])
def test_an_importer(site: Site, to: str) -> None:
    """All that it could deduplicate against is removed and collected."""

    def meanwhile(store: Clocked) -> None:
        remove(store, "big:1")
        collect(store)

    steps, errors = at_each_step(site.store, lambda store: site.put(store, "third", to), meanwhile, every=5)
    assert steps > 10
    assert 0 < len(errors) < steps
    assert all("repeat" in str(error) or isinstance(error, NotFound) for error in errors), errors


def test_who_tags_what_was_removed(site: Site) -> None:
    def make() -> Clocked:
        store = site.store()
        remove(store, "big:1")
        return store

    steps, errors = at_each_step(
        make, lambda store: tag_version(store, parse_reference("big:1@{1}"), NameTarget("back", "1"), ""), collect
    )
    assert 0 < len(errors) < steps


def test_who_pins_for_a_clone(site: Site) -> None:
    held: list[Digest] = []

    def make() -> Clocked:
        store = site.store()
        held[:] = [find_version(Repository(store), parse_reference("big:1")).name]
        remove(store, "big:1")
        return store

    def pin(store: Pruner) -> None:
        pin_version(store, held[0], "clone-1")
        assert store.exists(keys.version(held[0], 1)), "what is pinned stays"

    steps, errors = at_each_step(make, pin, collect)
    assert 0 < len(errors) <= steps
    assert all(isinstance(error, Collected) for error in errors)


def test_a_committer(site: Site, tmp_path: Path) -> None:
    """The clone's version is pinned, and no name stands for it any more."""
    base = find_version(Repository(site.store()), parse_reference("big:1"))
    table = CloneTable(tmp_path)
    (tmp_path / "layers").mkdir()
    size = base.version.root.size * BLOCK
    clone = table.create("c", "uuid", "big:1", base.pinned, "clone-1", size)
    number, extents = table.layers(clone)[0]
    written = ScratchFile(layer_file(tmp_path, number))
    written.write(bulk(9, 20 * BLOCK), 0)
    written.close()
    extents.put(0, 20 * BLOCK, Kind.DATA)
    table.keep(clone.id, number, list(extents), [], 0)
    draft = CaptureDraft("new", "1", False, "", "", "[]", "nonce")
    capture = table.push(table.add_layer(), clone.id, number, [], [], 0, draft)
    table.close()

    def make() -> Clocked:
        store = site.store()
        pin_version(store, base.name, "clone-1")
        return store

    def commit(store: Pruner) -> None:
        form = parse_format(FORMAT, store.url)
        with closing(Publisher(store, form, tmp_path, lambda said: None)) as publisher:
            publisher.publish(PublishTask(capture))
        version = find_version(Repository(store), parse_reference("new:1")).version
        assert stored_reader(Repository(store), version.root)(0, 20 * BLOCK) == bulk(9, 20 * BLOCK)

    def meanwhile(store: Clocked) -> None:
        remove(store, "big:1")
        site.put(store, "third")
        collect(store)

    steps, errors = at_each_step(make, commit, meanwhile, every=3)
    assert steps > 10
    assert errors == []


@pytest.mark.parametrize("phase", ["condemn", "sweep"])
def test_a_collector(site: Site, phase: str) -> None:
    """Others finish what it has begun, collect once more, and bring back what was deleted."""

    def make() -> Clocked:
        store = site.store()
        remove(store, "big:1")
        store.seconds += GRACE + 1
        if phase == "sweep":
            condemn(store)
            store.seconds += GRACE + 1
        return store

    def meanwhile(store: Clocked) -> None:
        site.put(store, "third")
        collect(store)
        site.put(store, "big")

    steps, errors = at_each_step(make, condemn if phase == "condemn" else sweep, meanwhile, every=5)
    assert steps > 10
    assert all("another host" in str(error) for error in errors), errors


def test_a_collector_beside_another(site: Site) -> None:
    """Each of two sweeps of one condemnation sees the other end at every step."""

    def make() -> Clocked:
        store = site.store()
        remove(store, "big:1")
        store.seconds += GRACE + 1
        condemn(store)
        store.seconds += GRACE + 1
        return store

    steps, errors = at_each_step(make, sweep, lambda store: sweep(store), every=5)
    assert steps > 10
    assert all("another host" in str(error) for error in errors), errors


def test_who_repairs_in_the_middle_of_a_collection(site: Site) -> None:
    """What a pack has lost is in another, which nothing needs, and which is collected meanwhile: what is mended stays so."""

    def make() -> Clocked:
        store = site.store()
        (pack,) = chunk_packs(store, "small:1") & chunk_packs(store, "big:1")
        packs = Repository(store).packs
        frames = [
            PackedFrame(name, place.codec, bytes(packs.stored([chunk_at(name, place)])), place.raw)
            for name, place in packs.head(pack).entries
        ]
        twin = seal(PackKind.CHUNKS, frames, bytes(16))
        store.create(pack_key(twin.name), twin.parts)
        store.delete(pack_key(pack))
        store.seconds += GRACE + 1
        return store

    said: list[bool] = []

    def repair(store: Pruner) -> None:
        check = StoreCheck(store, 0.0, config_chains, lambda said: None)
        check.mend(check.run(read=False))
        said.append(not check.run(read=False).problems)

    def as_it_said(store: Clocked) -> None:
        collect(store)
        if said[-1]:
            clean(store)
        problems = StoreCheck(store, 0.0, config_chains, lambda said: None).run(read=True).problems
        assert {problem.what for problem in problems} <= {"small:1", "big:1"}

    steps, errors = at_each_step(make, repair, collect, every=13, after=as_it_said)
    assert (steps > 10, errors) == (True, [])
    assert set(said) == {True, False}


def test_a_chunk_in_two_packs_of_which_one_is_condemned(site: Site) -> None:
    one, two = Clocked(), Clocked()
    for store, name in ((one, "small"), (two, "big")):
        store.create(keys.FORMAT, [FORMAT])
        site.put(store, name)
    for key in set(two.list("")) - set(one.list("")):
        one.create(key, [two.get(key, 1 << 30)])
    assert not chunk_packs(one, "small:1") & chunk_packs(one, "big:1")
    remove(one, "big:1")
    one.seconds += GRACE + 1
    condemn(one)
    site.put(one, "third")
    one.seconds += GRACE + 1
    sweep(one)
    assert chunk_packs(one, "third:1") & chunk_packs(one, "small:1")
    clean(one)


@pytest.mark.parametrize("ahead", [-DAY, DAY])
def test_hosts_whose_clocks_are_a_day_off(site: Site, ahead: float, monkeypatch: pytest.MonkeyPatch) -> None:
    store = site.store()
    monkeypatch.setattr(time, "time", lambda: store.seconds + ahead)
    site.put(store, "third", "big:1")
    version = find_version(Repository(store), parse_reference("big:1@{1}")).name
    store.seconds += DAY - 10
    condemn(store, keep=DAY)
    assert store.list("gc/") == []
    store.seconds += 20
    condemn(store, keep=DAY)
    store.seconds += GRACE + 1
    sweep(store, keep=DAY)
    assert not store.exists(keys.version(version, 1))
    clean(store)


def chunk_packs(store: Clocked, name: str) -> set[Digest]:
    root = find_version(Repository(store), parse_reference(name)).version.root
    found = leaves(root, Repository(store).packs.nodes)
    return {place.pack for _, leaf in found for place in leaf.placements if place is not None}
