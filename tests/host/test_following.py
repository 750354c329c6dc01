"""`attach --follow`: a mount that goes with its name; and what `status` and `clones` say of names that moved."""

import json
import os
import signal

import pytest

from tests.host.conftest import CONTENT, Host, rows
from tests.waiting import until

pytestmark = pytest.mark.root


@pytest.fixture
def live(mounting: Host) -> Host:
    """A host with a server, where app:live is what app:1 is, and a directory `mnt`."""
    mounting.serve()
    mounting.do("tag", "app:1", "app:live")
    (mounting.where / "mnt").mkdir()
    return mounting


def attached(host: Host) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(host.do("status", "--json"))["attached"]
    return found


def digest(host: Host, name: str) -> str:
    found: str = json.loads(host.do("log", name, "-n", "1", "--json"))[0]["digest"]
    return found


def test_a_followed_name_takes_its_mount_along(live: Host) -> None:
    where = live.where / "mnt"
    version = where / "etc/version"
    live.do("attach", "--follow", "app:live", where)
    assert version.read_text() == "1"
    with open(where / "data/content", "rb") as kept:
        assert kept.read(10) == CONTENT[:10]
        live.do("tag", "app:2", "app:live")
        until(lambda: version.exists() and version.read_text() == "2")
        (row,) = attached(live)
        assert (row["directory"], row["name"], row["is_followed"]) == (str(where), "app:live", True)
        assert row["export"] == row["newest"] == f"app@{digest(live, 'app:2')}"
        assert len(rows(live)) == 2
        assert kept.read() == CONTENT[10:], "what is open stays as it was"
    until(lambda: len(rows(live)) == 1)
    live.do("untag", "app:live")
    until(lambda: attached(live)[0]["newest"] is None)
    assert version.read_text() == "2", "a name that stands for nothing moves nothing"
    live.do("tag", "app:1", "app:live")
    until(lambda: version.exists() and version.read_text() == "1")
    live.do("detach", where)
    assert list((live.state / "following").iterdir()) == []
    assert live.leftovers() == []


def test_status_says_that_the_name_of_an_attached_image_has_moved(live: Host) -> None:
    where = live.where / "mnt"
    live.do("attach", "app:live", where)
    assert "MOVED" not in live.do("status")
    live.do("tag", "app:2", "app:live")
    (row,) = attached(live)
    assert row["export"] == f"app@{digest(live, 'app:1')}"
    assert row["newest"] == f"app@{digest(live, 'app:2')}"
    assert not row["is_followed"]
    said = live.do("status")
    assert "NAME HAS MOVED TO" in said
    assert digest(live, "app:2").removeprefix("sha256:")[:12] in said
    live.do("detach", where)


def test_what_does_not_move_cannot_be_followed(live: Host) -> None:
    where = live.where / "mnt"
    live.do("clone", "app:1", "web")
    for name in ("web", f"app@{digest(live, 'app:1')}", "app:live@{1}"):
        done = live.run("attach", "--follow", name, where)
        assert (done.returncode, "nothing to follow" in done.stderr) == (2, True), done.stderr
    assert live.leftovers() == []


def test_a_killed_follower_is_replaced_by_the_next_attach(live: Host) -> None:
    where = live.where / "mnt"
    live.do("attach", "--follow", "app:live", where)
    (lock,) = [path for path in (live.state / "following").iterdir() if not path.suffix]
    os.kill(int(lock.read_text()), signal.SIGKILL)
    until(lambda: not attached(live)[0]["is_followed"])
    live.do("detach", where)
    live.do("attach", "--follow", "app:live", where)
    live.do("tag", "app:2", "app:live")
    until(lambda: (where / "etc/version").exists() and (where / "etc/version").read_text() == "2")
    live.do("detach", where)
    assert live.leftovers() == []


def test_clones_shows_an_image_that_has_another_version_by_now(live: Host) -> None:
    live.do("clone", "app:live", "web")
    assert "IMAGE IS NOW" not in live.do("clones")
    live.do("tag", "app:2", "app:live")
    (row,) = json.loads(live.do("clones", "--json"))
    assert (row["base"], row["origin_now"]) == (f"app@{digest(live, 'app:1')}", f"app@{digest(live, 'app:2')}")
    assert digest(live, "app:2").removeprefix("sha256:")[:12] in live.do("clones")
    live.do("rewind", "web", "app:live")
    assert "IMAGE IS NOW" not in live.do("clones")
