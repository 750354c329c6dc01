"""`blockmap attach` and `detach`: real devices and mounts."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from blockmap.cli.main import program
from blockmap.control.client import Client
from blockmap.errors import HostError, UsageError
from blockmap.host import tools
from blockmap.host.attachments import Attachments
from blockmap.host.devices import mounts
from blockmap.host.devices.device import Device
from tests.host.conftest import CONTENT, Host, faulty_manager, rows
from tests.host.standin import StandIn
from tests.waiting import until

pytestmark = pytest.mark.root


def directories(host: Host, *names: str) -> list[Path]:
    made = [host.where / name for name in names]
    for path in made:
        path.mkdir()
    return made


def test_an_image_is_brought_whole_where_it_is_asked_for(mounting: Host) -> None:
    mounting.serve()
    (where,) = directories(mounting, "mnt")
    mounting.do("attach", "--hydrate", "app:1", where)
    until(lambda: [each["state"] for each in mounting.client.status()["hydrations"]] == ["complete"])
    said = mounting.do("status")
    assert "all of app@" in said
    assert ", complete" in said
    shutil.rmtree(mounting.store / "packs")
    assert (where / "data/content").read_bytes() == CONTENT
    mounting.do("detach", where)


def test_a_start_that_is_to_bring_nothing_more_is_announced_as_such(mounting: Host) -> None:
    mounting.serve()
    (where,) = directories(mounting, "mnt")
    front = StandIn(mounting.where / "front", mounting.socket, {"hydrate": lambda _: {}, "expect": lambda _: {}})
    try:
        mounting.do("attach", "--no-hydrate", "--socket", front.socket, "app:1", where)
        assert [(each["op"], each.get("wanted")) for each in front.asked] == [("hydrate", False), ("expect", None)]
    finally:
        mounting.do("detach", where)
        front.close()


def test_what_is_attached_is_the_image_and_nothing_is_written(mounting: Host) -> None:
    mounting.serve()
    (where,) = directories(mounting, "mnt")
    said = mounting.do("attach", "app:1", where)
    ((device, _),) = rows(mounting)
    assert re.fullmatch(f"app:1 is mounted read-only at {where} \\(device {device}(, by nbdfuse: .*)?\\)\n", said)
    assert (where / "etc/version").read_bytes() == b"1"
    assert (where / "data/content").read_bytes() == CONTENT
    with pytest.raises(OSError, match="Read-only"):
        (where / "new").write_text("x")
    entry = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {where} " in line)
    assert {"ro", "nosuid", "nodev"} <= set(entry.split()[5].split(","))
    assert "errors=remount-ro" in entry
    assert Path("/sys/block", Path(device).name, "ro").read_text() == "1\n"
    assert Path("/sys/block", Path(device).name, "loop/dio").read_text() == "1\n"
    status = mounting.do("status")
    assert str(where) in status
    assert "app:1" in status
    mounting.do("detach", where)
    assert mounting.leftovers() == []
    assert json.loads(mounting.do("status", "--json"))["pid"] == mounting.nbdkit()


def test_a_version_has_one_device_however_often_it_is_attached(mounting: Host) -> None:
    mounting.serve()
    first, second, third = directories(mounting, "first", "second", "third")
    mounting.do("attach", "app:1", first)
    mounting.do("attach", "app:1", second)
    pinned = json.loads(mounting.do("status", "--json"))["attached"][0]["export"]
    mounting.do("attach", pinned, third)
    assert len(rows(mounting)) == 1
    mounting.do("detach", first)
    mounting.do("detach", third)
    assert (second / "etc/version").read_bytes() == b"1"
    mounting.do("attach", "app:2", first)
    assert len(rows(mounting)) == 2
    assert (first / "etc/version").read_bytes() == b"2"
    mounting.do("detach", first)
    mounting.do("detach", second)
    assert mounting.leftovers() == []


def test_a_moved_tag_changes_no_open_device(mounting: Host, image: Path) -> None:
    mounting.serve()
    first, second = directories(mounting, "first", "second")
    mounting.do("attach", "app:1", first)
    mounting.do("import", "--quiet", f"oci:{image}/2:2", "app:1", "--platform", "linux/amd64")
    mounting.do("attach", "app:1", second)
    assert (first / "etc/version").read_bytes() == b"1"
    assert (second / "etc/version").read_bytes() == b"2"
    mounting.do("detach", first)
    mounting.do("detach", second)
    assert mounting.leftovers() == []


def test_two_at_once_share_a_device_and_a_server_that_they_start(mounting: Host) -> None:
    where = directories(mounting, *"abcd")
    started = [mounting.start("attach", "app:1", path) for path in where]
    for process in started:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert len(rows(mounting)) == 1
    detached = [mounting.start("detach", path) for path in where]
    for process in detached:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert mounting.leftovers() == []


def test_mistakes_are_explained_and_leave_nothing(mounting: Host) -> None:
    mounting.serve()
    (where,) = directories(mounting, "mnt")
    for arguments, code, said in (
        (["attach", "nothing:1", where], 1, "there is no image nothing:1"),
        (["attach", "Nonsense!", where], 2, "is not the name of a repository"),
        (["attach", "app:1", mounting.where / "absent"], 2, "make it first"),
        (["attach", "app:1", __file__], 2, "is no directory: name one"),
        (["detach", where], 2, f"nothing is attached at {where}, nor anywhere else"),
        (["attach", "--store", mounting.where / "other", "app:1", where], 1, "serves"),
    ):
        done = mounting.run(*arguments)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr
    mounting.do("attach", "app:1", where)
    done = mounting.run("attach", "app:2", where)
    assert "something is mounted at" in done.stderr
    (other,) = directories(mounting, "other")
    assert f"nothing is attached at {other}, but at {where}" in mounting.run("detach", other).stderr
    with open(where / "etc/version"):
        assert "busy" in mounting.run("detach", where).stderr
    assert (where / "etc/version").read_bytes() == b"1"
    mounting.do("detach", where)
    assert mounting.leftovers() == []


def test_symlinks_and_relative_directories(mounting: Host) -> None:
    mounting.serve()
    (where,) = directories(mounting, "a place, with: odd\tname")
    link = mounting.where / "link"
    link.symlink_to(where)
    mounting.do("attach", "app:1", link)
    assert (where / "etc/version").read_bytes() == b"1"
    mounting.do("detach", where / ".." / where.name)
    assert mounting.leftovers() == []


def test_it_starts_a_server_that_ends_when_it_is_not_needed(mounting: Host) -> None:
    (where,) = directories(mounting, "mnt")
    done = mounting.run("attach", "--store", mounting.where / "nothing", "app:1", where)
    assert done.returncode == 1
    assert "is not a blockmap store" in done.stderr
    mounting.cache.write_text("not a directory")
    done = mounting.run("attach", "app:1", where)
    assert done.returncode == 1
    assert "cannot use the cache" in done.stderr
    mounting.cache.unlink()
    mounting.do("attach", "app:1", where)
    until(lambda: "ready" in mounting.said())
    mounting.do("detach", where)
    assert mounting.leftovers() == []


def test_when_the_server_has_died_it_is_attached_anew(mounting: Host) -> None:
    mounting.serve()
    where, other = directories(mounting, "mnt", "other")
    mounting.do("attach", "app:1", where)
    mounting.kill_nbdkit()
    done = mounting.run("attach", "app:1", other)
    assert done.returncode == 0, done.stderr
    assert f"{where} is unmounted: the server behind it has gone" in done.stderr
    assert (other / "data/content").read_bytes() == CONTENT
    assert mounts.source(where) is None
    mounting.do("detach", other)
    assert mounting.leftovers() == []


def test_a_server_takes_apart_what_the_one_before_it_left(mounting: Host) -> None:
    mounting.serve()
    (where,) = directories(mounting, "mnt")
    mounting.do("attach", "app:1", where)
    nbdkit = mounting.nbdkit()
    mounting.end_manager()  # which would start a server again
    assert mounting.server is not None
    mounting.server.kill()
    mounting.server.wait()
    until(lambda: not Path(f"/proc/{nbdkit}").exists())
    mounting.serve()
    until(lambda: f"{where} is unmounted: the server behind it has gone" in mounting.said())
    assert mounting.leftovers() == []


def test_a_server_that_hangs_holds_up_only_its_own(mounting: Host) -> None:
    mounting.serve()
    where, other = directories(mounting, "mnt", "other")
    mounting.do("attach", "app:1", where)
    hung = mounting.nbdkit()
    hanging, mounting.server = mounting.server, None
    os.kill(hung, signal.SIGSTOP)
    try:
        socket = mounting.where / "other.sock"
        mounting.do("attach", "--socket", socket, "--cache", mounting.where / "cache2", "app:1", other)
        assert (other / "etc/version").read_bytes() == b"1"
        assert len(rows(mounting)) == 2
        mounting.do("detach", other)
        assert len(rows(mounting)) == 1
    finally:
        os.kill(hung, signal.SIGCONT)
        mounting.server = hanging
    mounting.do("detach", where)
    assert mounting.leftovers() == []
    client = Client(socket, 5)
    supervisor = Path(f"/proc/{client.status()['pid']}/stat").read_text().rpartition(")")[2].split()[1]
    os.kill(int(supervisor), signal.SIGTERM)
    until(lambda: not client.answers())


def test_a_dead_device_can_be_detached(mounting: Host) -> None:
    mounting.serve()
    (where,) = directories(mounting, "mnt")
    mounting.do("attach", "app:1", where)
    ((_, pid),) = rows(mounting)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())
    mounting.do("detach", where)
    assert mounting.leftovers() == []


def test_what_is_unmounted_by_hand_is_noticed(mounting: Host) -> None:
    mounting.serve()
    where, other = directories(mounting, "mnt", "other")
    mounting.do("attach", "app:1", where)
    subprocess.run(["umount", where], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "mine", where], check=True)
    assert "nothing is attached at" in mounting.run("detach", where).stderr
    assert mounts.source(where) == "mine"
    subprocess.run(["umount", where], check=True)
    assert mounting.leftovers() == []
    mounting.do("attach", "app:1", other)
    mounting.do("detach", other)
    assert mounting.leftovers() == []


KILL = "def instead(*arguments, **named):\n    real(*arguments, **named)\n    os.kill(os.getpid(), signal.SIGKILL)"
STEPS = [
    ("blockmap.host.devices.loops", "attach"),
    ("blockmap.host.devices.mounts", "mount"),
    ("blockmap.host.warm.warming", "begin"),
]
KILLED = [
    *STEPS,
    ("blockmap.host.devices.nbdfuse", "_image"),
    ("blockmap.host.devices.lock", "create"),
    ("blockmap.host.mounting", "expect"),
    ("blockmap.host.attachment_table", "AttachmentTable.set_made"),
]


@pytest.mark.parametrize(
    ("module", "name"), KILLED, ids=["loop", "mount", "warming", "nbdfuse", "folder", "noted", "made"]
)
def test_an_attach_that_is_killed_half_way_is_cleaned_by_the_next(mounting: Host, module: str, name: str) -> None:
    mounting.serve()
    (where,) = directories(mounting, "mnt")
    with faulty_manager(mounting, module, name, KILL):
        done = mounting.run("attach", "app:1", where)
    assert done.returncode != 0
    assert mounting.leftovers()
    if name == "mount":
        assert (where / "etc/version").read_bytes() == b"1"  # all was done but the farewell
        mounting.do("detach", where)
    else:
        mounting.do("attach", "app:1", where)
        mounting.do("detach", where)
    assert mounting.leftovers() == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("blockmap.host.warm.warming", "end"),
        ("blockmap.host.devices.mounts", "take_off"),
        ("blockmap.host.devices.loops", "detach"),
        ("blockmap.host.devices.nbdfuse", "_unmount"),
        ("blockmap.host.attachment_table", "AttachmentTable.drop_device"),
    ],
    ids=["warming", "unmount", "loop", "nbdfuse", "record"],
)
def test_a_detach_that_is_killed_half_way_is_finished_by_the_next(mounting: Host, module: str, name: str) -> None:
    mounting.serve()
    (where,) = directories(mounting, "mnt")
    mounting.do("attach", "app:1", where)
    with faulty_manager(mounting, module, name, KILL):
        assert mounting.run("detach", where).returncode != 0
    mounting.run("detach", where)
    assert mounting.leftovers() == []


@pytest.mark.parametrize(("module", "name"), STEPS, ids=["loop", "mount", "warming"])
def test_an_attach_that_fails_half_way_leaves_nothing(mounting: Host, module: str, name: str) -> None:
    mounting.serve()
    (where,) = directories(mounting, "mnt")
    fail = "def instead(*arguments, **options):\n    raise HostError('it is broken')"
    with faulty_manager(mounting, module, name, fail):
        done = mounting.run("attach", "app:1", where)
    assert (done.returncode, done.stderr) == (1, "blockmap: it is broken\n")
    assert mounting.leftovers() == []
    assert json.loads(mounting.do("status", "--json"))["exports"] == []


def test_an_nbdfuse_that_fails_is_quoted(mounting: Host) -> None:
    mounting.serve()
    where, bin = directories(mounting, "mnt", "bin")
    (bin / "nbdfuse").write_text("#!/bin/sh\necho it is broken >&2; exit 32\n")
    (bin / "nbdfuse").chmod(0o755)
    mounting.environment["PATH"] = f"{bin}:{mounting.environment['PATH']}"
    done = mounting.run("attach", "app:1", where)
    assert done.returncode == 1
    assert "it is broken" in done.stderr
    assert "Traceback" not in done.stderr
    assert mounting.leftovers() == []


def test_interrupting_it_leaves_nothing(mounting: Host) -> None:
    mounting.serve()
    (where,) = directories(mounting, "mnt")
    reached = mounting.where / "reached"
    wait = f"def instead(*arguments):\n    open({str(reached)!r}, 'w').close()\n    time.sleep(60)"
    with faulty_manager(mounting, "blockmap.host.devices.mounts", "mount", wait):
        process = mounting.start("attach", "app:1", where)
        until(reached.exists)
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said.strip()) == (130, "blockmap: interrupted")
        assert mounting.leftovers() == []
        reached.unlink()
        process = mounting.start("attach", "app:1", where)
        until(reached.exists)
        process.kill()
        process.communicate()
        until(lambda: mounting.leftovers() == [], mounting.said)


def test_missing_tools_are_named_with_their_package(mounting: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(tools, "SEARCH", "")
    with pytest.raises(HostError, match="nbdkit-plugin-python"):
        tools.find("nbdkit")
    with pytest.raises(HostError, match="apt-get install fuse3"):
        tools.find("fusermount3")


class Refuses:
    """An attacher that cannot."""

    kind = "refuses"

    def attach(self, nbd_socket: Path, export: str, directory: Path, *, writable: bool = False) -> Device:
        (directory / "half").write_text("done")
        raise HostError("no")

    def detach(self, device: Device) -> None:
        pass

    def clear(self, directory: Path) -> None:
        pass

    def is_alive(self, device: Device) -> bool:
        return False

    def is_open(self, device: Device) -> bool:
        return False

    def use_small_sectors(self, device: Device) -> bool:
        return False


def test_records(tmp_path: Path, need_root: None) -> None:
    attachments = Attachments(tmp_path / "state", Refuses(), lambda text: None)
    assert attachments.list() == []
    assert not (tmp_path / "state").exists()  # who only looks makes nothing
    with pytest.raises(HostError, match="no"):
        attachments.attach(Client(tmp_path / "nbd.sock"), "app@sha256:00", "app", tmp_path)
    assert list((tmp_path / "state/devices").iterdir()) == []
    with pytest.raises(UsageError, match="nothing is attached"):
        attachments.detach(tmp_path)
    (tmp_path / "state/attachments.db").write_bytes(b"x" * 4096)
    with pytest.raises(HostError, match="is damaged"):
        attachments.detach(tmp_path)
    with pytest.raises(HostError, match="cannot be read"):
        attachments.list()


@pytest.mark.parametrize("command", [["attach", "app:1", "/mnt"], ["detach", "/mnt"], ["run", "app:1"]])
def test_without_root_it_says_so(host: Host, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(program, command, env=host.environment)
    assert isinstance(done.exception, HostError)
    assert "needs root: run it with sudo" in str(done.exception)
