"""Which bundle an open begins to bring: what hints and this host's own record say, and what becomes of it when they lie."""

from dataclasses import replace
from pathlib import Path

import pytest

from blockmap.format import hint, keys
from blockmap.format.hint import BundleRef
from blockmap.format.version import Version
from blockmap.store.base import Pruner
from blockmap.store.profiles import ProfileLog
from tests.server.test_opening import HINT, Host, Hosts, block, host, store, volume
from tests.store.faulty import Faulty
from tests.volume.building import Watched
from tests.volume.bundled import bundled
from tests.waiting import until

__all__ = ["host", "store"]


def learn(store: Pruner, made: Version, n: int = 1) -> BundleRef:
    """A bundle of the first blocks of a version, of which its name's hint tells."""
    about = bundled(store, made.root, [0, 1, 2], keys.bundle(made.name, "default", n, 1))
    assert ProfileLog(store).advise("a", made.name) == 1
    return about


def begun(here: Host) -> list[str]:
    replays = here.replays.status()["replays"]
    assert isinstance(replays, list)
    return [each["bundle"] for each in replays]


def told(store: Pruner) -> hint.Hint:
    return hint.decode(store.get(HINT), "a", "1")


def tell(store: Pruner, *bundles: BundleRef) -> None:
    store.replace(HINT, hint.encode(replace(told(store), bundles=bundles)))


def test_a_bundle_of_another_version_is_not_asked_for(store: Pruner, host: Hosts) -> None:
    made = volume(store, 1)
    about = learn(store, made)
    volume(store, 2)
    tell(store, about)
    here = host(store)
    assert here.first(here.find()) == block(2)
    assert begun(here) == []


def test_a_bundle_that_a_later_hint_tells_of_is_brought_at_the_next_open(store: Pruner, host: Hosts) -> None:
    made = volume(store, 1)
    first = learn(store, made, 1)
    here = host(store)
    assert here.first(here.find()) == block(1)
    assert begun(here) == [first.key]
    second = learn(store, made, 2)
    here.seconds += 10
    found = here.start()
    assert here.first(found.resolved) == block(1)
    assert begun(here) == [first.key, second.key]
    assert found.replay is not None
    assert found.replay.number == 2


def test_a_hint_that_lies_later_does_not_displace_a_bundle_that_was_verified(store: Pruner, host: Hosts) -> None:
    made = volume(store, 1)
    about = learn(store, made)
    here = host(store)
    first = here.start().replay
    assert first is not None
    assert first.wait_head(10) is not None
    tell(store, replace(about, length=about.length + 1))
    here.seconds += 10
    second = here.start().replay
    assert second is first
    assert first.wait_end(10)
    assert not first.failed


@pytest.mark.parametrize("export", ["a:1", "digest"])
def test_a_host_that_has_all_does_without_the_store(store: Pruner, host: Hosts, export: str) -> None:
    made = volume(store, 1)
    about = learn(store, made)
    here = host(store)
    here.first(here.find())
    before = here.start().replay
    assert before is not None
    assert before.wait_end(10)
    here.fetcher.flush()
    faulty = Faulty(store)
    faulty.down = True
    here = host(faulty)
    found = here.start(f"a@sha256:{made.name.hex()}" if export == "digest" else export)
    assert here.first(found.resolved) == block(1)
    assert found.replay is not None
    assert found.replay.wait_end(10)
    assert (begun(here), found.replay.failed) == ([about.key], "")


def test_a_digest_is_opened_with_the_bundle_that_its_name_told_of(store: Pruner, host: Hosts) -> None:
    made = volume(store, 1)
    about = learn(store, made)
    here = host(store)
    assert here.start(f"a@sha256:{made.name.hex()}").replay is None, "no hint has been read yet"
    replay = here.start().replay
    assert replay is not None
    assert replay.wait_head(10) is not None
    here = host(store)
    found = here.find(f"a@sha256:{made.name.hex()}")
    assert begun(here) == [about.key]
    assert here.first(found) == block(1)


@pytest.mark.parametrize("lie", ["longer", "shorter", "table", "missing"])
def test_a_hint_that_lies_about_a_bundle_costs_time_alone(store: Pruner, host: Hosts, lie: str) -> None:
    made = volume(store, 1)
    about = learn(store, made)
    wrong = {
        "longer": replace(about, length=1 << 31),
        "shorter": replace(about, length=about.length - 100),
        "table": replace(about, table=about.length),
        "missing": replace(about, key=keys.bundle(made.name, "default", 9, 1)),
    }[lie]
    tell(store, wrong)
    here = host(store)
    found = here.start()
    assert here.first(found.resolved) == block(1)
    assert found.replay is not None
    assert found.replay.wait_end(30)
    assert found.replay.bytes < 2 * about.length


def test_the_bundle_of_another_volume_leaves_the_nodes_to_the_run(store: Pruner, host: Hosts, tmp_path: Path) -> None:
    other = volume(store, 2)
    about = bundled(store, other.root, [0, 1], keys.bundle(volume(store, 1).name, "default", 1, 1))
    tell(store, about)
    here = host(store)
    found = here.find()
    until(lambda: here.fetcher.has_node(found.root.digest, found.root.placement))
    assert here.first(found) == block(1)


def test_a_digest_is_opened_while_the_bundle_that_its_name_told_of_is_on_its_way(store: Pruner, host: Hosts) -> None:
    """As a device does, a moment after its name was resolved: a question to the store would be one more round trip."""
    made = volume(store, 1)
    about = learn(store, made)
    watched = Watched(store)
    here = host(watched)
    watched.gate.clear()
    try:
        first = here.start().replay
        second = here.start(f"a@sha256:{made.name.hex()}").replay
        assert first is not None
        assert second is first
        assert {key for key, _, _ in watched.ranges} <= {about.key}
    finally:
        watched.gate.set()
    assert first.wait_end(30)
