"""Opening: in how many steps over a network, what a host knows by itself, what it does while the store is away."""

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockmap.cache.cache import Cache
from blockmap.errors import Corrupt, NotFound, StoreUnavailable
from blockmap.fetch.fetcher import Fetcher
from blockmap.format import BLOCK, hint, keys, oci
from blockmap.format import entry as entries
from blockmap.format import version as versions
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.extent import Extent
from blockmap.format.oci import DocumentRecord
from blockmap.format.placement import Placement
from blockmap.format.refs import parse_reference
from blockmap.format.tree import build
from blockmap.format.version import NodeRun, Version
from blockmap.origin.ranges import Ranges
from blockmap.origin.records import RecordCache
from blockmap.publish.nodes import store_nodes
from blockmap.publish.object_writer import ObjectWriter
from blockmap.replay.replays import Replays
from blockmap.server.opener import Opener, ResolvedStart
from blockmap.store.base import Pruner
from blockmap.store.http import open_http
from blockmap.store.memory import MemoryStore
from blockmap.store.names import EntryDraft, NameLog, NameReader, NameTarget
from blockmap.store.opening import create_store
from blockmap.store.plan import Wanted
from blockmap.store.resolver import Resolved
from blockmap.store.signing import Trust
from blockmap.volume.readonly import ReadOnlyVolume
from blockmap.volume.reads import Read
from blockmap.volume.start import Start
from tests.image.builder import bulk
from tests.store import servers
from tests.store.faulty import Faulty
from tests.store.steps import Steps
from tests.volume.building import name, publish_trees
from tests.waiting import until

HINT = keys.name_hint("a", "1")


@pytest.fixture
def store() -> Pruner:
    made = MemoryStore()
    made.create(keys.FORMAT, [b"{}"])
    return made


def entry(n: int) -> str:
    return keys.entry("a", "1", n)


def block(seed: int) -> bytes:
    return bulk(seed, 20 * BLOCK)[:BLOCK]


def volume(store: Pruner, seed: int, tag: str = "1") -> Version:
    """Moves a:TAG to a volume of two levels whose first block is block(seed)."""
    trees = publish_trees(store, [(0, bulk(seed, 20 * BLOCK)), (9 * SPAN, bulk(seed + 1000, 20 * BLOCK))], 10 * SPAN)
    return name(store, trees.root, "a", tag, run=trees.run)


class Remote:
    """Passes all calls on, as a store that is far away."""

    local = False

    def __init__(self, inner: Pruner) -> None:
        self.get, self.get_range, self.list, self.exists = inner.get, inner.get_range, inner.list, inner.exists
        self.size = inner.size
        self.create, self.replace, self.delete = inner.create, inner.replace, inner.delete
        self.url = inner.url


class Host:
    """One life of a server; the next one finds its cache."""

    def __init__(self, directory: Path, store: Pruner, answer_s: float = 30.0, trust: Trust | None = None) -> None:
        self.seconds = 0.0
        self.cache = Cache(directory, 1 << 26)
        self.known = RecordCache(directory, store.url)
        ranges = Ranges(store)
        self.damage: list[Wanted] = []
        self.fetcher = Fetcher(ranges, self.cache, self.damage.append)
        self.replays = Replays(ranges, self.cache, self.fetcher.staging, self.fetcher.verifier)
        self.opener = Opener(
            store, self.known, self.fetcher, self.replays, NameLog(store), lambda: self.seconds, answer_s, trust
        )

    def start(self, export: str = "a:1") -> ResolvedStart:
        return self.opener.find(parse_reference(export))

    def find(self, export: str = "a:1") -> Resolved:
        return self.start(export).resolved

    def first(self, found: Resolved) -> bytes:
        """The first block, and one of another leaf."""
        read = self.reader(found)
        buf, other = bytearray(BLOCK), bytearray(BLOCK)
        read(memoryview(buf), 0)
        read(memoryview(other), 9 * SPAN * BLOCK)
        return bytes(buf)

    def reader(self, found: Resolved) -> Read:
        return ReadOnlyVolume(found.pinned, found.root, self.fetcher).reader(Start(found.pinned, found.root))

    def close(self) -> None:
        self.fetcher.stop()
        self.replays.close()
        self.fetcher.close()
        self.cache.close()
        self.known.close()


class Hosts:
    """Starts a server after ending the one before."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._alive: list[Host] = []

    def __call__(self, store: Pruner, answer_s: float = 30.0, trust: Trust | None = None) -> Host:
        self.stop()
        self._alive.append(Host(self._directory, store, answer_s, trust))
        return self._alive[0]

    def stop(self) -> None:
        while self._alive:
            self._alive.pop().close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path / "cache")
    yield hosts
    hosts.stop()


# --- steps


def test_a_cold_open_by_name_takes_two_steps(store: Pruner, host: Hosts) -> None:
    made = volume(store, 1)
    assert made.root.placement is not None
    steps = Steps(store, 1, 3)
    here = host(steps)
    found = here.find()
    nodes = f"range {keys.pack(made.root.placement.pack)}"
    assert steps.serial == [[f"get {HINT}"], sorted([f"exists {entry(2)}", f"get {entry(1)}", nodes])]
    assert here.first(found) == block(1)
    assert nodes not in [asked for step in steps.serial[2:] for asked in step], (
        "the run has the nodes of the first reads"
    )
    assert len(steps.serial) == 4, "only the two chunks are fetched"


def test_a_record_too_long_for_the_hint_is_fetched_beside_the_nodes(store: Pruner, host: Hosts) -> None:
    trees = publish_trees(store, [(0, bulk(1, 20 * BLOCK))], SPAN)
    made = replace(volume(store, 2), config=b"x" * hint.MAX_VERSION_BYTES, root=trees.root)
    ObjectWriter(store).put_version(made, set())
    NameLog(store).set(NameTarget("a", "1"), EntryDraft.of(made, 1))
    steps = Steps(store, 1, 4)
    assert host(steps).find().version.name == made.name
    assert len(steps.serial) == 2


def test_a_warm_open_takes_one_step_also_after_a_restart(store: Pruner, host: Hosts) -> None:
    volume(store, 1)
    here = host(Remote(store))
    here.first(here.find())
    steps = Steps(store, 3)
    here = host(steps)
    assert here.first(here.find()) == block(1)
    assert steps.serial == [sorted([f"exists {entry(2)}", f"get {entry(1)}", f"get {HINT}"])]


def test_a_name_is_asked_for_once_a_second(store: Pruner, host: Hosts) -> None:
    volume(store, 1)
    steps = Steps(store, 1, 3)
    here = host(steps)
    here.find()
    volume(store, 2)
    here.seconds = 0.99
    assert here.first(here.find()) == block(1)
    assert [key for step in steps.serial[2:] for key in step if "names/" in key] == []
    here.seconds = 1.0
    steps.expect(3, 3)
    assert here.first(here.find()) == block(2)


def test_a_local_store_is_always_asked(store: Pruner, host: Hosts) -> None:
    here = host(store)
    for seed in range(3):
        volume(store, seed)
        assert here.first(here.find()) == block(seed)


@pytest.mark.parametrize("moves", [1, 2, 7])
def test_a_name_that_moved_is_found_by_its_hint(store: Pruner, host: Hosts, moves: int) -> None:
    volume(store, 0)
    host(Remote(store)).find()
    for seed in range(1, moves + 1):
        volume(store, seed)
    steps = Steps(store, 3, 3)
    here = host(steps)
    assert here.first(here.find()) == block(moves)
    assert f"get {HINT}" in steps.serial[0]


def test_a_digest_takes_two_steps_and_asks_for_no_name(store: Pruner, host: Hosts) -> None:
    made = volume(store, 1)
    assert made.root.placement is not None
    steps = Steps(store, 3)
    here = host(steps)
    export = f"a@sha256:{made.name.hex()}"
    found = here.find(export)
    nodes = f"range {keys.pack(made.root.placement.pack)}"
    documents = [f"get {keys.oci(made.name, 1)}", f"exists {keys.oci(made.name, 2)}"]
    assert steps.serial == [sorted([*documents, f"get {keys.version(made.name, 1)}"]), [nodes]]
    assert here.first(found) == block(1)
    assert len(steps.serial) == 4, "only the two chunks are fetched"
    here = host(steps := Steps(store))
    assert here.first(here.find(export)) == block(1)
    assert steps.serial == [], "what never changes is on the disk"


def test_the_digest_of_a_document_takes_one_more(store: Pruner, host: Hosts) -> None:
    made = replace(volume(store, 1), manifest=b"manifest")
    ObjectWriter(store).put_version(made, set())
    document = Digest(hashlib.sha256(b"manifest").digest())
    store.create(keys.oci(document, 1), [oci.encode(DocumentRecord(made.name, 1))])
    steps = Steps(store, 3, 1, 1)
    found = host(steps).find(f"a@sha256:{document.hex()}")
    assert (found.name, len(steps.serial)) == (made.name, 3)
    steps = Steps(store)
    found = host(steps).find(f"a@sha256:{document.hex()}")
    assert (found.name, steps.serial) == (made.name, [])


@pytest.mark.parametrize("number", [2, 3, 8])
def test_a_version_whose_first_record_was_condemned(store: Pruner, host: Hosts, number: int) -> None:
    made = volume(store, 1)
    data = store.get(keys.version(made.name, 1))
    store.delete(keys.version(made.name, 1))
    store.create(keys.version(made.name, number), [data])
    steps = Steps(store, 3, 1, 1, 7)
    assert host(steps).find(f"a@sha256:{made.name.hex()}").name == made.name
    steps = Steps(store)
    assert host(steps).find(f"a@sha256:{made.name.hex()}").name == made.name
    assert steps.serial == []


def test_a_digest_that_nothing_has(store: Pruner, host: Hosts) -> None:
    with pytest.raises(NotFound, match="has the digest"):
        host(store).find("a@sha256:" + "0" * 64)


PLACE = Placement(Digest(b"\7" * 32), 0, 0, BLOCK, BLOCK)


@pytest.mark.parametrize(
    ("size", "of"),
    [(20 * 10**9, 100), pytest.param(1 << 40, 2, marks=pytest.mark.long)],
    ids=["20 GB", "1 TiB"],
)
def test_large_volumes_open_over_http_in_three_steps_and_a_megabyte(
    host: Hosts, need: Callable[..., None], tmp_path: Path, size: int, of: int
) -> None:
    """Every 16 MiB of the volume has data, in chunks that are made up: an open reads none."""
    need("nginx")
    chosen = random.Random(1)
    extents = [
        Extent(span * SPAN + 40 * at, 1, Digest(chosen.randbytes(32)), 1, 0)
        for span in range(size // BLOCK // SPAN)
        for at in range(of)
    ]
    directory, _ = create_store(str(tmp_path / "store"))
    made = store_nodes([build(extents, size // BLOCK, {})], lambda _: PLACE, ObjectWriter(directory).put_pack)
    name(directory, made.roots[0], "a", "1", run=made.run)
    (tmp_path / "nginx").mkdir()
    with servers.nginx(tmp_path / "nginx", tmp_path / "store") as url:
        steps = Steps(open_http(url), 1, 3)
        here = host(steps)
        later: list[Callable[[], object]] = []
        here.fetcher.later = later.append  # type: ignore[method-assign]
        found = here.find()
        volume = ReadOnlyVolume(found.pinned, found.root, here.fetcher)
        assert volume.extents(0, BLOCK, Start(found.pinned, found.root)) == [(0, BLOCK, False)]
        assert len(steps.serial) <= 3
        for act in later:  # nobody waits for it, but it costs bytes
            act()
    assert steps.bytes < 10**6


# --- advice that is wrong


def lie(store: Pruner, of: str, other: Version) -> bytes:
    good = hint.decode(store.get(HINT), "a", "1")
    first = NameReader(store).entry("a", "1", 1)
    foreign = NameReader(store).entry("a", "other", 1)
    forged = replace(good.entry, version=other.name)
    unreal = replace(good.entry, n=3, key=entry(3))
    run = good.entry.run
    assert run is not None
    elsewhere = replace(good.entry, run=NodeRun(Digest(b"\1" * 32), 0, 5000))
    return {
        "nothing": b"",
        "damage": store.get(HINT)[:-9],
        "an older entry": hint.encode(hint.Hint(*first, good.version)),
        "an older entry and record": hint.encode(hint.Hint(*first, None)),
        "another name's entry": hint.encode(hint.Hint(*foreign, None)),
        "another version's record": hint.encode(hint.Hint(good.entry, good.stored, versions.encode(other))),
        "a damaged record": hint.encode(hint.Hint(good.entry, good.stored, b"x\n")),
        "a forged entry": hint.encode(hint.Hint(forged, entries.encode(forged), versions.encode(other))),
        "a forged run": hint.encode(hint.Hint(elsewhere, entries.encode(elsewhere), good.version)),
        "an entry to come": hint.encode(hint.Hint(unreal, entries.encode(unreal), good.version)),
    }[of]


@pytest.mark.parametrize(
    "of",
    [
        "nothing",
        "damage",
        "an older entry",
        "an older entry and record",
        "another name's entry",
        "another version's record",
        "a damaged record",
        "a forged entry",
        "a forged run",
        "an entry to come",
    ],
)
def test_a_hint_that_lies_changes_nothing(store: Pruner, host: Hosts, of: str) -> None:
    other = volume(store, 5, "other")
    volume(store, 1)
    made = volume(store, 2)
    good = store.get(HINT)
    store.replace(HINT, lie(store, of, other))
    here = host(Remote(store))
    found = here.find()
    assert found.version == made
    assert here.first(found) == block(2)
    if of not in ("another version's record", "a damaged record"):  # these two are not found behind
        until(lambda: store.get(HINT) == good)


def test_a_lost_hint_is_written_again_by_who_may(store: Pruner, host: Hosts) -> None:
    volume(store, 1)
    good = store.get(HINT)
    store.delete(HINT)
    readonly = Faulty(store)
    readonly.hints_refused = True
    assert host(readonly).find().name == host(Remote(store)).find().name
    store.delete(HINT)
    (fresh := host(Remote(store))).known.forget_name("a", "1")
    fresh.find()
    until(lambda: store.exists(HINT))
    assert store.get(HINT) == good


@pytest.mark.parametrize("wrong", ["absent pack", "short pack", "other bytes", "no run"])
def test_a_run_that_is_wrong_costs_steps_alone(store: Pruner, host: Hosts, wrong: str) -> None:
    trees = publish_trees(store, [(0, bulk(1, 20 * BLOCK)), (9 * SPAN, bulk(2, 20 * BLOCK))], 10 * SPAN)
    assert trees.run is not None
    run = {
        "absent pack": replace(trees.run, pack=Digest(b"\1" * 32)),
        "short pack": replace(trees.run, end=trees.run.end + 100_000),
        "other bytes": replace(trees.run, start=0, end=trees.run.start + 10),
        "no run": None,
    }[wrong]
    name(store, trees.root, "a", "1", run=run)
    here = host(store)
    assert here.first(here.find()) == block(1)


def test_damaged_nodes_of_a_run_are_not_kept(store: Pruner, host: Hosts) -> None:
    volume(store, 1)

    class Flipping(Remote):
        def __init__(self, inner: Pruner) -> None:
            super().__init__(inner)
            self.get_range = self.flipped
            self.inner, self.left = inner, 1

        def flipped(self, key: str, start: int, end: int) -> bytes:
            data = bytearray(self.inner.get_range(key, start, end))
            if self.left:
                self.left -= 1
                data = bytearray(byte ^ 1 for byte in data)
            return bytes(data)

    here = host(Flipping(store))
    assert here.first(here.find()) == block(1)


def test_a_name_that_moves_between_the_two_steps(store: Pruner, host: Hosts) -> None:
    volume(store, 1)

    class Moving(Remote):
        def __init__(self, inner: Pruner) -> None:
            super().__init__(inner)
            self.get = self.moved

        def moved(self, key: str, *most: int) -> bytes:
            data = store.get(key, *most)
            if key == HINT and not store.exists(entry(2)):
                volume(store, 2)
            return data

    here = host(Moving(store))
    assert here.first(here.find()) == block(2)


def test_a_name_that_was_removed(store: Pruner, host: Hosts) -> None:
    volume(store, 1)
    log = NameLog(store)
    log.append(NameTarget("a", "1"), log.newest("a", "1"), EntryDraft(None, 0))
    for _ in range(2):
        with pytest.raises(NotFound, match="there is no image a:1"):
            host(Remote(store)).find()


# --- the store away


def warm(store: Pruner, host: Hosts) -> None:
    here = host(Remote(store))
    here.first(here.find())


def test_a_warm_host_opens_and_serves_while_the_store_is_away(
    store: Pruner, host: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    made = volume(store, 1)
    warm(store, host)
    faulty = Faulty(store)
    faulty.down = True
    here = host(faulty)
    assert here.first(here.find()) == block(1)
    assert here.first(here.find(f"a@sha256:{made.name.hex()}")) == block(1)
    assert here.opener.unconfirmed == 1, "a digest needs no confirmation"
    assert "a:1 is opened as it was last seen here, entry 1: no answer" in caplog.text
    with pytest.raises(StoreUnavailable):
        here.find("a:2")
    volume(store, 2)
    faulty.down = False
    assert here.first(here.find()) == block(2)
    assert here.opener.unconfirmed == 1


def test_a_store_that_hangs_is_waited_for_once(store: Pruner, host: Hosts) -> None:
    volume(store, 1)
    warm(store, host)
    gate = threading.Event()
    waiting: list[str] = []

    class Hanging(Remote):
        def __init__(self, inner: Pruner) -> None:
            super().__init__(inner)
            self.get, self.exists = self.later(inner.get), self.later(inner.exists)

        def later(self, call: Callable[..., bytes | bool]) -> Callable[..., bytes | bool]:
            def held(key: str, *most: int) -> bytes | bool:
                waiting.append(key)
                assert gate.wait(30)
                return call(key, *most)

            return held

    here = host(Hanging(store), answer_s=0.05)
    try:
        assert here.first(here.find()) == block(1)
        until(lambda: len(waiting) == 3)
        here.seconds = 4.9
        assert here.first(here.find()) == block(1)
        assert (len(waiting), here.opener.unconfirmed) == (3, 2), "it was not asked again"
    finally:
        gate.set()
    volume(store, 2)
    here.opener._answer_seconds = 30.0
    here.seconds = 5.0
    assert here.first(here.find()) == block(2)
    assert here.opener.unconfirmed == 2


def test_a_store_that_is_not_mounted_is_away(store: Pruner, host: Hosts) -> None:
    volume(store, 1)
    warm(store, host)
    here = host(MemoryStore())
    assert here.first(here.find()) == block(1)
    assert here.opener.unconfirmed == 1
    with pytest.raises(StoreUnavailable, match="check that it is mounted"):
        here.find("a:2")


def test_another_store_at_the_same_place_is_believed(store: Pruner, host: Hosts) -> None:
    for seed in (1, 2):
        volume(store, seed)
    warm(store, host)
    other = MemoryStore()
    other.create(keys.FORMAT, [b"{}"])
    volume(other, 7)
    here = host(other)
    assert here.first(here.find()) == block(7)
    volume(other, 8)
    here = host(other)
    assert here.first(here.find()) == block(8)


def test_a_damaged_newest_entry_is_said_and_nothing_older_is_served(store: Pruner, host: Hosts) -> None:
    volume(store, 1)
    warm(store, host)
    volume(store, 2)
    store.delete(entry(2))
    store.create(entry(2), [b"damaged"])
    with pytest.raises(Corrupt):
        host(Remote(store)).find()


@pytest.mark.parametrize("damage", [b"", b"no database", b"SQLite format 3\0" + bytes(5000)])
def test_what_a_host_knew_can_be_lost(store: Pruner, host: Hosts, tmp_path: Path, damage: bytes) -> None:
    volume(store, 1)
    warm(store, host)
    host.stop()
    for suffix in ("-wal", "-shm"):
        Path(f"{tmp_path}/cache/names.db{suffix}").unlink(missing_ok=True)
    (tmp_path / "cache/names.db").write_bytes(damage)
    here = host(steps := Steps(store, 1, 2))
    assert here.first(here.find()) == block(1)
    assert len(steps.serial) == 2, "the nodes and chunks are in the cache"
    here = host(steps := Steps(store, 3))
    here.find()
    assert len(steps.serial) == 1
