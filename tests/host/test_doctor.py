"""`blockmap doctor` on hosts that each have one fault, a real one: it is found by name, and the advice is to the point."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from blockmap.control.messages import Status
from blockmap.host.devices import netlink
from blockmap.host.doctor.examine import CHECKS, look
from blockmap.host.doctor.finding import Examined, Finding, State
from tests.faults.links import netshape
from tests.host.conftest import Host, rows
from tests.host.standin import StandIn
from tests.waiting import until

NAMES = [check.name for check in CHECKS]


def subject_of(host: Host, **changes: Any) -> Examined:
    settings = {"store": str(host.store), "cache": host.cache, "socket": host.socket, "state": host.state}
    return Examined(**{**settings, **changes})


def finding(host: Host, name: str, **changes: Any) -> Finding:
    (check,) = (check for check in CHECKS if check.name == name)
    return look(check, subject_of(host, **changes))


def fault(found: Finding, *said: str, state: State = State.FAULT) -> None:
    assert found.state is state, found
    text = f"{found.found}: {found.action}"
    assert all(words in text for words in said), text
    assert found.action


def report(host: Host, *before: str) -> dict[str, dict[str, Any]]:
    """What the command says, run by `before`; its exit status is that of the faults."""
    command = [*before, sys.executable, "-m", "blockmap.cli.main", "doctor", "--json"]
    done = subprocess.run(command, env=host.environment, capture_output=True, text=True, check=False)
    said = json.loads(done.stdout)
    checks = {check["name"]: check for check in said["checks"]}
    has_fault = any(check["state"] == "fault" for check in checks.values())
    assert (done.returncode, said["ok"]) == (int(has_fault), not has_fault), done
    return checks


@contextlib.contextmanager
def small_disk(where: Path, size: str) -> Iterator[Path]:
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


class Web(ThreadingHTTPServer):
    """Serves a folder; `ahead_s` is how far its clock is ahead."""

    def __init__(self, folder: Path, ahead_s: float = 0.0) -> None:
        class Handler(SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(folder))

            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(time.time() + ahead_s, usegmt=True)

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        super().__init__(("127.0.0.1", 0), Handler)


@contextlib.contextmanager
def web(folder: Path, ahead_s: float = 0.0) -> Iterator[int]:
    server = Web(folder, ahead_s)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_host_that_is_well(host: Host) -> None:
    checks = report(host)
    assert list(checks) == NAMES
    assert [name for name in NAMES if checks[name]["state"] == "fault"] == []
    for name in (
        "nbdkit",
        "nbdkit-python",
        "packages",
        "cache",
        "cache-room",
        "state",
        "store",
        "store-writable",
        "store-bandwidth",
    ):
        assert checks[name]["state"] == "ok", checks[name]
    assert checks["server"]["state"] == "skipped"
    assert not host.cache.exists()
    text = host.do("doctor").splitlines()
    assert len([line for line in text if line[:1] != " "]) == len(NAMES) + 1
    assert text[-1].startswith("0 faults, ")


def test_a_server_that_is_well(serving: Host) -> None:
    assert finding(serving, "server").state is State.OK
    assert finding(serving, "cache").state is State.OK


@pytest.mark.root
def test_without_root_server_and_store_it_says_so(host: Host, public: Path, need_root: None) -> None:
    os.chown(public, 65534, 65534)
    environment = {name: value for name, value in host.environment.items() if not name.startswith(("BLOCKMAP", "XDG"))}
    done = subprocess.run(
        [sys.executable, "-m", "blockmap.cli.main", "doctor", "--json"],
        env={**environment, "HOME": str(public), "TMPDIR": str(public)},
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert list(checks) == NAMES
    for name in ("server", "store", "store-writable", "store-latency", "store-bandwidth", "attached"):
        assert checks[name]["state"] == "skipped", checks[name]


@pytest.mark.root
def test_programs_and_devices_that_are_not_there(host: Host, need_root: None, need: Callable[..., None]) -> None:
    need("unshare", "nbdfuse", "runc", "skopeo")
    hidden = " && ".join(
        [f"mount --bind /dev/null {shutil.which(name)}" for name in ("nbdkit", "nbdfuse", "runc", "skopeo")]
        + [f"mount --bind /etc/hostname {path}" for path in ("/dev/fuse", "/dev/loop-control") if Path(path).exists()]
    )
    checks = report(host, "unshare", "-m", "sh", "-c", f'{hidden} && exec "$@"', "sh")
    assert checks["nbdkit"]["state"] == "fault"
    assert "apt-get install nbdkit nbdkit-plugin-python" in checks["nbdkit"]["action"]
    for name, words in (("fuse", "nbdfuse"), ("loop", "loop device")):
        assert checks[name]["state"] in ("fault", "warning"), checks[name]  # a warning where the kernel has nbd
        assert words in checks[name]["found"], checks[name]
    for name in ("runc", "skopeo"):
        assert (checks[name]["state"], checks[name]["action"]) == ("warning", f"apt-get install {name}")


@pytest.mark.parametrize(
    ("name", "script", "said"),
    [
        ("nbdkit-python", "echo python_version=2.7.18", "Python is 2.7"),
        ("packages", "echo \"ModuleNotFoundError: No module named 'numpy'\" >&2; exit 1", "No module named 'numpy'"),
    ],
)
def test_another_nbdkit(host: Host, monkeypatch: pytest.MonkeyPatch, name: str, script: str, said: str) -> None:
    folder = host.where / "bin"
    folder.mkdir()
    (folder / "nbdkit").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nbdkit").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    fault(finding(host, name), said, "venv")


def test_a_cache_that_cannot_be_used(host: Host) -> None:
    host.cache.mkdir()
    (host.cache / "index.db").write_bytes(b"garbage" * 1000)
    fault(finding(host, "cache"), "index", "rm ", state=State.WARNING)
    shutil.rmtree(host.cache)
    host.cache.write_text("a file")
    fault(finding(host, "cache"), "is no directory", "--cache")


@pytest.mark.root
def test_disks_that_are_full_or_somebody_elses(host: Host, need_root: None) -> None:
    with small_disk(host.where / "small", "2m") as small:
        (small / "filler").write_bytes(bytes(2 << 20))
        fault(finding(host, "cache-room", cache=small / "cache"), "0.0 MB free", "--cache")
        fault(finding(host, "state-room", state=small / "state"), "0.0 MB free", "BLOCKMAP_STATE")
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        fault(finding(host, "cache", cache=small / "cache"), "read-only")
    host.cache.mkdir()
    os.chown(host.cache, 65534, -1)
    fault(finding(host, "cache"), "belongs to another user")


def test_garbage_in_the_record_of_what_is_attached(host: Host) -> None:
    host.state.mkdir()
    (host.state / "attachments.db").write_bytes(b"garbage" * 1000)
    fault(finding(host, "state"), "attachments.db", "move the file away")
    assert report(host)["state"]["state"] == "fault"


def test_a_socket_that_nobody_listens_on(host: Host) -> None:
    host.socket.parent.mkdir()
    for path in (host.socket, host.socket.with_name("nbd.sock.ctl")):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    fault(finding(host, "server"), "nobody listens", "blockmap serve")


def test_a_server_of_another_release_and_of_another_store(serving: Host) -> None:
    status = dict(serving.client.ask(Status()).status)
    answers = {"status": lambda _: {**status, "version": "0.0.1"}}
    other = StandIn(serving.where / "other", serving.socket, answers)
    try:
        fault(finding(serving, "server", socket=other.socket), "release 0.0.1", "blockmap stop")
    finally:
        other.close()
    fault(finding(serving, "server", store="/elsewhere"), "/elsewhere", "--store", state=State.WARNING)


def test_a_server_that_does_not_answer(serving: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockmap.host.doctor.finding._ANSWER_SECONDS", 0.3)
    nbdkit = serving.nbdkit()
    os.kill(nbdkit, signal.SIGSTOP)
    try:
        fault(finding(serving, "server"), "does not answer", "log")
    finally:
        os.kill(nbdkit, signal.SIGCONT)


def test_a_store_that_has_gone_or_is_no_store(host: Host) -> None:
    (host.store / "format").rename(host.where / "format")
    fault(finding(host, "store"), "is not a blockmap store", "--store")
    shutil.rmtree(host.store)
    checks = report(host)
    assert checks["store"]["state"] == "fault"
    assert {checks[f"store-{part}"]["state"] for part in ("writable", "latency", "bandwidth")} == {"skipped"}


@pytest.mark.root
def test_a_store_that_cannot_be_written_is_said_and_no_fault(host: Host, need_root: None) -> None:
    before = sorted(host.store.rglob("*"))
    subprocess.run(["mount", "--bind", "-o", "ro", host.store, host.store], check=True)
    try:
        found = finding(host, "store-writable")
        assert (found.state, "read-only" in found.found) == (State.OK, True), found
    finally:
        subprocess.run(["umount", host.store], check=True)
    assert finding(host, "store-writable").found == "can be written by this user"
    assert sorted(host.store.rglob("*")) == before


def test_a_store_behind_a_slow_link(host: Host) -> None:
    with web(host.store) as port, netshape(port, "--rtt-ms", "300") as (shaped, _):
        url = f"http://127.0.0.1:{shaped}"
        fault(
            finding(host, "store-latency", store=url), " ms for a small object", "profile record", state=State.WARNING
        )


@pytest.mark.parametrize(
    ("ahead_s", "state", "said"),
    [(0, State.OK, "agrees"), (120, State.WARNING, "120 s behind"), (-3600, State.FAULT, "3600 s ahead")],
)
def test_a_clock_that_is_wrong(host: Host, ahead_s: float, state: State, said: str) -> None:
    with web(host.store, ahead_s) as port:
        found = finding(host, "clock", store=f"http://127.0.0.1:{port}")
    assert found.state is state, found
    assert said.split()[0] in found.found or abs(ahead_s) > 0
    assert said.split()[-1] in found.found


def test_a_kernel_that_complains_before_reads_give_up(host: Host, tmp_path: Path) -> None:
    kernel = tmp_path / "proc/sys/kernel"
    kernel.mkdir(parents=True)
    (kernel / "hung_task_timeout_secs").write_text("30\n")
    fault(finding(host, "timeouts", proc=tmp_path / "proc"), "after 30 s", "--outage wait=15", state=State.WARNING)
    (kernel / "hung_task_panic").write_text("1\n")
    fault(finding(host, "timeouts", proc=tmp_path / "proc"), "panics after 30 s")
    (kernel / "hung_task_timeout_secs").write_text("120\n")
    assert finding(host, "timeouts", proc=tmp_path / "proc").state is State.OK


def test_a_kernel_without_nbd_or_without_its_devices(host: Host, tmp_path: Path) -> None:
    modules, kernel = tmp_path / "modules" / os.uname().release, tmp_path / "sys"
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("kernel/drivers/block/nbd.ko.xz:\n")
    assert finding(host, "nbd", sys=kernel, modules=tmp_path / "modules").state is State.OK
    (modules / "modules.dep").write_text("kernel/fs/fuse/fuse.ko:\n")
    fault(finding(host, "nbd", sys=kernel, modules=tmp_path / "modules"), "has no nbd", state=State.WARNING)
    (kernel / "block/nbd77").mkdir(parents=True)
    fault(finding(host, "nbd-devices", sys=kernel), "/dev has no nbd77")
    if not netlink.is_there():
        (kernel / "module/nbd").mkdir(parents=True)
        fault(finding(host, "nbd", sys=kernel), "does not answer over netlink")


def test_reads_that_wait_longer_than_the_kernel(host: Host) -> None:
    host.serve("--outage", "app:1=wait=700")
    fault(finding(host, "timeouts"), "up to 700 s", "after 600 s", "--outage wait=300")


@pytest.mark.root
def test_devices_whose_server_has_gone(mounting: Host) -> None:
    mounting.serve()
    point = mounting.where / "m"
    point.mkdir()
    mounting.do("attach", "app:1", point)
    assert finding(mounting, "attached").state is State.OK
    assert finding(mounting, "read-ahead").state is State.OK
    ((device, _),) = rows(mounting)
    ahead = Path("/sys/block", Path(device).name, "queue/read_ahead_kb")
    until(lambda: ahead.read_text().strip() == "128")
    ahead.write_text("4096")
    fault(finding(mounting, "read-ahead"), "4096 KiB", "read_ahead_kb", state=State.WARNING)
    ahead.write_text("128")
    assert finding(mounting, "manager").state is State.OK
    mounting.end_manager()  # which would start the server again
    fault(finding(mounting, "manager"), "does not run", state=State.WARNING)
    assert mounting.server is not None
    mounting.server.kill()
    mounting.server.wait()
    mounting.server = None
    checks = report(mounting)
    assert checks["attached"]["state"] == "fault"
    assert f"blockmap detach {point}" in checks["attached"]["action"]
    assert (checks["processes"]["state"], str(mounting.socket) in checks["processes"]["found"]) == ("warning", True)
    mounting.do("detach", point)
    assert str(mounting.socket) not in finding(mounting, "processes").found


@pytest.mark.root
def test_what_killed_commands_left(host: Host, need_root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = host.where / "temporary"
    left = [host.state / "devices/tmp1", host.state / "runs/run-1", temporary / "blockmap-import-1"]
    for each in left:
        each.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    for name, path in zip(("devices", "runs", "temporary"), left, strict=True):
        fault(finding(host, name), str(path), state=State.WARNING)
        path.rmdir()
        assert finding(host, name).state is State.OK
