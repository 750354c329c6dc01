"""What is no start changes no profile of a real image."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.control.messages import Traces
from blockmap.format.profile import Profile
from blockmap.learn.automatic import learn_from_start
from blockmap.store.opening import open_store
from blockmap.store.profiles import ProfileReader
from tests.corpus.starts import near, record
from tests.faults.links import need_shared
from tests.host.conftest import Host
from tests.waiting import free_ports, until

pytestmark = [
    pytest.mark.long,
    pytest.mark.root,
    pytest.mark.filterwarnings("ignore:subprocess .* is still running"),  # nbdfuse, which ends when it is unmounted
]


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
            assert "nothing to learn" in said
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
