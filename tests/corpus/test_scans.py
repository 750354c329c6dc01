"""What is no start changes no profile of a real image, and a profile that was spoiled gets well by ordinary starts.

Run with -s: prints sizes and seconds.
"""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blockmap.control.messages import Traces
from blockmap.format.profile import Profile
from blockmap.format.refs import parse_reference
from blockmap.learn.automatic import learn_from_start
from blockmap.learn.learner import ProfileLearner, find_subject
from blockmap.learn.local_files import LocalProfiles
from blockmap.learn.stored_index import index_of
from blockmap.store.opening import open_store
from blockmap.store.profiles import ProfileReader
from blockmap.store.repository import Repository
from tests.corpus.starts import near, record, start_once
from tests.faults.links import need_shared
from tests.host.conftest import Host
from tests.waiting import free_ports, until

pytestmark = [
    pytest.mark.long,
    pytest.mark.root,
    pytest.mark.filterwarnings("ignore:subprocess .* is still running"),  # nbdfuse, which ends when it is unmounted
]


STARTS = 40
WELL = 1.1


@pytest.fixture(params=["redis:1", "python-flask:1"])
def image(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def imported(image: str, corpus: Path, where: Path, need: Callable[..., None], need_root: None) -> Host:
    need("nbdkit", "nbdfuse", "losetup", "runc")
    need_shared("corpus/run-startup")
    host = Host(where)
    host.do("import", "--quiet", f"oci:{corpus}/{image}", image)
    return host


def newest(host: Host, image: str) -> Profile | None:
    return ProfileReader(open_store(str(host.store))[0]).newest(image.partition(":")[0], "default")


def size(profile: Profile | None) -> int:
    assert profile is not None
    return sum(item.blocks for item in profile.items)


def test_who_reads_an_image_once_changes_no_profile(imported: Host, image: str, where: Path) -> None:
    record(where, imported.store, image)
    before = newest(imported, image)
    with near(where / "host", imported.store) as host:
        image_at = where / "mnt"
        image_at.mkdir()
        for label in ([], ["--label", "default"]):
            host.do("attach", image, image_at, *label)
            copy = subprocess.run(["tar", "-cf", "-", "-C", image_at, "."], stdout=subprocess.PIPE, check=True).stdout
            assert len(copy) > 50_000_000
            host.do("detach", image_at)
            until(lambda: not host.client.status()["exports"])
            told = host.client.ask(Traces()).traces[0]
            assert (told["new"], told["declared"]) == (True, bool(label))
            assert host.client.status()["traces"]["learnable"] == bool(label)
            said = learn_from_start(str(imported.store), host.cache, image, Path(told["path"]), print)
            assert "nothing new learnt" in said
        assert "nothing was learnt" in host.run("profile", "build", image, Path(told["path"])).stderr
    assert newest(imported, image) == before


def test_a_program_that_is_never_ready_teaches_nothing(imported: Host, image: str, where: Path) -> None:
    (port,) = free_ports(1)
    with near(where / "host", imported.store) as host:
        done = host.run("profile", "record", "--ready", f"http:{port}", "--seconds", "7", image)
        assert (done.returncode, "nothing is learnt" in done.stderr) == (1, True), done.stderr
        told = host.client.ask(Traces()).traces[0]
        assert (told["state"], told["declared"]) == ("failed", False)
        assert host.client.status()["learn"]["runs"] == 0
        assert host.run("profile", "build", image).returncode == 1
    assert newest(imported, image) is None


def test_a_spoiled_profile_gets_well(imported: Host, image: str, where: Path) -> None:
    record(where, imported.store, image)
    good = newest(imported, image)
    assert good is not None
    store, _ = open_store(str(imported.store))
    subject = find_subject(store, parse_reference(image))
    layout = index_of(Repository(store), subject.root)
    blocks = layout.unpack(np.arange(layout.blocks))
    items = layout.items(blocks, np.zeros_like(blocks), np.full(len(blocks), 20))
    learner = ProfileLearner(store, subject, LocalProfiles(where / "profiles"), print)
    learner.publish(replace(good, n=0, starts=20, items=items))
    sizes = [size(newest(imported, image))]
    with near(where / "host", imported.store, "--no-learn") as host:
        ready: list[float] = []
        while sizes[-1] > WELL * size(good):
            assert len(ready) < STARTS, sizes
            started = start_once(host, image)
            ready.append(started.ready_s)
            assert started.trace is not None
            learn_from_start(str(imported.store), host.cache, image, Path(started.trace), print)
            sizes.append(size(newest(imported, image)))
    print(
        f"\n{image}: {size(good)} blocks are well; {len(ready)} starts: {sizes}; ready {ready[0]:.2f}, {ready[-1]:.2f} s"
    )
    with near(where / "after", imported.store, "--no-learn") as host:
        started = start_once(host, image)
    print(f"a start elsewhere: {started.ready_s:.2f} s, missed reads {started.missed_reads}")
