"""Learning by itself, in a real server, as no test of a part shows it.

Run with -s: prints bytes, seconds and reads that had to be fetched.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.control.messages import Readings, Resolve
from blockmap.format.refs import parse_reference
from blockmap.learn.automatic import learn_from_start
from blockmap.store.bundles import newest_bundles
from blockmap.store.names import NameReader
from blockmap.store.opening import open_store
from tests.corpus.starts import far, megabytes, near, record, start_once
from tests.faults.links import need_shared
from tests.host.conftest import Host

pytestmark = [
    pytest.mark.long,
    pytest.mark.root,
    pytest.mark.filterwarnings("ignore:subprocess .* is still running"),  # nbdfuse, which ends when it is unmounted
]

IMAGE = "redis:1"
LEARNT_S = 180
"""A server waits for up to a minute before it publishes."""
FEW = 4


@pytest.fixture
def imported(corpus: Path, where: Path, need: Callable[..., None], need_root: None) -> Host:
    need("nginx", "nbdkit", "nbdfuse", "losetup")
    need_shared("corpus/run-startup")
    host = Host(where)
    host.do("import", "--quiet", f"oci:{corpus}/{IMAGE}", IMAGE)
    return host


def wait_learnt(host: Host) -> None:
    end = time.monotonic() + LEARNT_S
    while not (learn := host.client.status()["learn"])["runs"] or learn["running"]:
        assert time.monotonic() < end, host.said()
        time.sleep(0.2)
    assert learn["failures"] == 0, host.said()


def test_ten_starts_on_one_host_leave_the_profile_whole(imported: Host, where: Path) -> None:
    store = imported.store
    record(where, store, IMAGE)
    with far(where / "before", store, "--no-learn") as other:
        before = start_once(other, IMAGE)
    with near(where / "host", store, "--no-learn") as host:
        for number in range(10):
            trace = start_once(host, IMAGE).trace
            assert trace is not None
            # As the server does it; it would wait in between.
            print(f"{number}: {learn_from_start(str(store), host.cache, IMAGE, Path(trace), print)}")
        # And as a person does it, with all that this host has recorded.
        print(host.run("profile", "build", IMAGE).stdout)
    with far(where / "after", store, "--no-learn") as other:
        after = start_once(other, IMAGE)
    for title, each in (("before", before), ("after ten starts", after)):
        print(f"{title}: {each.ready_s:.2f} s, {megabytes(each.remote_bytes)}, missed_reads {each.missed_reads}")
    assert after.missed_reads <= before.missed_reads + FEW
    assert after.remote_bytes < 1.1 * before.remote_bytes


def test_what_one_host_saw_the_next_one_has(imported: Host, where: Path) -> None:
    store = imported.store
    with near(where / "host", store) as host:
        first = start_once(host, IMAGE)
        wait_learnt(host)
    opened, _ = open_store(str(store))
    reference = parse_reference(IMAGE)
    assert reference.tag is not None
    hint = NameReader(opened).hint(reference.repo, reference.tag)
    assert hint is not None
    assert hint.entry.version is not None
    assert hint.bundles == newest_bundles(opened, hint.entry.version) != ()
    with far(where / "without", store, "--no-learn") as other:
        without = start_once(other, f"{IMAGE}+unlearnt")
    with far(where / "other", store, "--no-learn") as other:
        second = start_once(other, IMAGE)
    print(f"\nlearnt from {first.ready_s:.2f} s; bundle {megabytes(hint.bundles[0].length)}")
    for title, each in (("without it", without), ("with it", second)):
        print(f"{title}: {each.ready_s:.2f} s, {megabytes(each.remote_bytes)}, missed_reads {each.missed_reads}")
    assert second.missed_reads <= FEW
    assert second.remote_bytes < without.remote_bytes
    assert second.ready_s < without.ready_s


def test_where_the_store_is_read_only_the_host_alone_learns(imported: Host, where: Path) -> None:
    store = imported.store
    with far(where / "host", store) as host:
        first = start_once(host, IMAGE)
        assert first.trace is not None
        said = learn_from_start(host.environment["BLOCKMAP_STORE"], host.cache, IMAGE, Path(first.trace), print)
        assert "the store cannot be written from here" in said
        assert not (store / "profiles").exists()
        pinned = host.client.ask(Resolve(IMAGE)).export
        told = host.client.ask(Readings(pinned))
        assert told.profile == 0
        assert len(told.readings) > 100, "it is what attach warms the kernel by"
        second = start_once(host, IMAGE)
    print(f"\nfirst {first.ready_s:.2f} s, second {second.ready_s:.2f} s")
