"""What `status` says with and without a server, `stop`, and the server's group."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.host.conftest import BLOCKMAP, Host
from tests.waiting import LIMIT_S


def test_status_names_the_supervisor(serving: Host) -> None:
    assert serving.server is not None
    said = json.loads(serving.do("status", "--json"))
    assert (said["running"], said["supervisor"]["pid"], said["pid"]) == (True, serving.server.pid, serving.nbdkit())
    assert said["supervisor"] == {"pid": serving.server.pid, "idle_seconds": None, "log": str(serving.where / "log")}
    text = serving.do("status")
    assert f"process {serving.server.pid} (its nbdkit: {serving.nbdkit()})" in text
    assert "by itself" not in text
    assert "faults" not in text
    serving.kill_nbdkit()
    assert json.loads(serving.do("status", "--json"))["supervisor"]["pid"] == serving.server.pid


def test_a_server_that_was_started_on_demand_says_when_it_ends_and_where_its_log_is(host: Host) -> None:
    host.do("clone", "app:1", "mine")
    text = host.do("status")
    assert "by itself, 60 s after its last use; `blockmap stop` ends it now" in text
    log = next(line.split()[1] for line in text.splitlines() if line.startswith("log "))
    assert "ready: serving" in Path(log).read_text()
    host.do("stop")


def test_stop_ends_the_supervisor_and_what_it_serves(serving: Host) -> None:
    server, nbdkit = serving.server, serving.nbdkit()
    assert server is not None
    assert f"process {server.pid}, has ended" in serving.do("stop")
    assert server.wait(LIMIT_S) == 0
    serving.server = None
    assert not Path(f"/proc/{nbdkit}").exists()
    assert not serving.socket.exists()
    for command in ("stop", "status"):
        done = serving.run(command)
        assert (done.returncode, done.stdout) == (3, ""), done
        assert done.stderr.count("\n") == 1


@pytest.mark.root
def test_what_is_attached_is_listed_when_the_server_has_gone(mounting: Host) -> None:
    mounting.serve()
    point = mounting.where / "m"
    point.mkdir()
    said = json.loads(mounting.do("attach", "app:1", point, "--json"))
    assert (said["name"], said["directory"], said["writable"]) == ("app:1", str(point), False)
    with_server = json.loads(mounting.do("status", "--json"))["attached"]
    assert [(each["device"], each["export"]) for each in with_server] == [(said["device"], said["export"])]
    refused = mounting.run("stop")
    assert refused.returncode == 1
    assert f"still attached: {point} (app:1)" in refused.stderr
    assert "--force" in refused.stderr
    stopped = mounting.run("stop", "--force")
    assert stopped.returncode == 0
    assert f"blockmap detach {point}" in stopped.stderr
    assert mounting.server is not None
    mounting.server.wait(LIMIT_S)
    mounting.server = None
    done = mounting.run("status")
    assert done.returncode == 3
    assert "no blockmap server answers" in done.stderr
    assert str(point) in done.stdout
    done = mounting.run("status", "--json")
    assert done.returncode == 3
    said = json.loads(done.stdout)
    assert (said["running"], said["attached"]) == (False, with_server)
    mounting.do("detach", point)


@pytest.mark.root
@pytest.mark.parametrize("as_further_group", [True, False])
def test_members_of_the_group_may_look_and_change_nothing(
    host: Host, public: Path, need_root: None, as_further_group: bool
) -> None:
    host.move_socket(public)
    host.serve("--group", "7000")
    who = {"group": 7001, "extra_groups": [7000]} if as_further_group else {"group": 7000, "extra_groups": []}
    host.store.chmod(0o700)  # as credentials that this user does not have
    environment = {**host.environment, "BLOCKMAP_STATE": "/nonexistent", "BLOCKMAP_CACHE": "/nonexistent"}

    def run(*arguments: str, store: str | None = None) -> subprocess.CompletedProcess[str]:
        own = (
            {**environment, "BLOCKMAP_STORE": store}
            if store
            else {k: v for k, v in environment.items() if k != "BLOCKMAP_STORE"}
        )
        return subprocess.run(
            [*BLOCKMAP, *arguments], env=own, user=65533, capture_output=True, text=True, check=False, cwd="/", **who
        )  # fmt: skip

    for store in (None, str(host.store)):
        done = run("images", "--json", store=store)
        assert [image["name"] for image in json.loads(done.stdout)] == ["app:1", "app:2"], done.stderr
    assert json.loads(run("images", "--data", "--json").stdout)[0]["data_bytes"] > 0
    done = run("status", "--json")
    assert json.loads(done.stdout)["store"] == str(host.store), done.stderr
    for command in (["clone", "app:1", "mine"], ["rm", "mine"], ["commit", "mine", "app:9"]):
        done = run(*command)
        assert done.returncode == 1
        assert "for root and its own user only: run it with sudo" in done.stderr
    assert run("stop").returncode == 1
    assert host.do("clones").count("\n") == 1


@pytest.mark.root
def test_strangers_are_told_what_they_lack(host: Host, public: Path, need_root: None) -> None:
    host.move_socket(public)
    host.serve()
    done = subprocess.run(
        [*BLOCKMAP, "status"], env={**host.environment, "BLOCKMAP_STATE": "/nonexistent"}, user=65533, group=65533,
        extra_groups=[], capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 1
    assert "run it with sudo" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_group_that_is_not_there(host: Host) -> None:
    done = host.run("serve", "--group", "no-such-group")
    assert done.returncode == 2
    assert "groupadd --system no-such-group" in done.stderr


def test_versions(host: Host) -> None:
    said = json.loads(host.do("version", "--json"))
    assert said["blockmap"] == host.do("--version").split()[-1]
    assert said["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    assert said["plugin_api"] == 2
    plugin = (Path(__file__).parents[2] / "nbdplugin/plugin.py").read_text()
    assert f"\nAPI_VERSION = {said['plugin_api']}\n" in plugin
    text = host.do("version")
    assert all(str(value) in text for value in said.values())


def test_help(host: Host) -> None:
    for words in (["status"], ["profile", "record"], []):
        assert host.do("help", *words).split("\n", 1)[1] == host.do(*words, "--help").split("\n", 1)[1]
    table = host.do("help", "exit-codes")
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["0", "1", "2", "3", "126", "127", "128+N", "130"]
    done = host.run("help", "statsu")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_store_is_made_where_there_is_none(host: Host) -> None:
    assert host.run("create").returncode == 2
    there = json.loads(host.do("create", "--if-absent", "--json"))
    assert (there["created"], there["url"]) == (False, str(host.store))
    made = json.loads(host.do("create", host.where / "other", "--if-absent", "--json"))
    assert made["created"]
    (host.where / "full").mkdir()
    (host.where / "full/letter").write_text("dear")
    assert host.run("create", host.where / "full", "--if-absent").returncode == 1


def test_an_unknown_tag_names_those_that_are_there(host: Host) -> None:
    for command in (["show", "app:3"], ["clone", "app", "mine"]):
        done = host.run(*command)
        assert done.returncode == 1
        assert "app has the tags 1, 2; see `blockmap images`" in done.stderr
    host.do("untag", "app:2")
    assert "app has the tag 1; " in host.run("show", "app:3").stderr
    assert "has the tag" not in host.run("show", "other:3").stderr
