"""The process that attaches devices: started on demand, killed, replaced, and asked from other mount namespaces."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import blockmap
from blockmap.errors import HostError
from blockmap.host.devices import mounts
from blockmap.host.manager.place import answers, socket_name
from tests.host.conftest import BLOCKMAP, CONTENT, Host, faulty_manager
from tests.waiting import LIMIT_S, until

pytestmark = pytest.mark.root


@pytest.fixture
def ready(mounting: Host) -> Host:
    """A host with a server, and directories `one` and `two`."""
    mounting.serve()
    for name in ("one", "two"):
        (mounting.where / name).mkdir()
    return mounting


def test_a_killed_one_is_replaced_and_knows_what_is_attached(ready: Host) -> None:
    one, two = ready.where / "one", ready.where / "two"
    ready.do("attach", "app:1", one)
    first = ready.manager()
    assert first is not None
    ready.end_manager(signal.SIGKILL)
    assert (one / "data/content").read_bytes() == CONTENT
    ready.do("attach", "app:1", two)
    assert ready.manager() not in (None, first)
    assert mounts.source(one) == mounts.source(two)
    ready.do("detach", one)
    ready.do("detach", two)
    assert ready.leftovers() == []


def held(ready: Host) -> tuple[Path, Path, str]:
    """A file that is there once an attach has reached its middle, one that lets it go on, and the fault that does so to the
    first."""
    reached, go_on = ready.where / "reached", ready.where / "go-on"
    code = f"""
def instead(*arguments, **named):
    try:
        open({str(reached)!r}, "x").close()
        while not os.path.exists({str(go_on)!r}):
            time.sleep(0.005)
    except FileExistsError:
        pass
    return real(*arguments, **named)
"""
    return reached, go_on, code


def test_one_that_is_killed_in_the_middle_of_an_attach_does_not_disturb_it(ready: Host) -> None:
    one, two = ready.where / "one", ready.where / "two"
    reached, go_on, code = held(ready)
    with faulty_manager(ready, "blockmap.host.mounting", "expect", code):
        attaching = ready.start("attach", "app:1", one)
        until(reached.exists)
        ready.end_manager(signal.SIGKILL)
        ready.do("attach", "app:2", two)  # by the next
        go_on.touch()
        _, said = attaching.communicate(timeout=LIMIT_S)
        assert attaching.returncode == 0, said
    assert (one / "etc/version").read_text() + (two / "etc/version").read_text() == "12"
    assert ready.do("detach", "--all").splitlines() == [f"{one} is unmounted", f"{two} is unmounted"]
    assert ready.leftovers() == []


def test_attaches_of_different_images_do_not_wait_for_each_other(ready: Host) -> None:
    one, two = ready.where / "one", ready.where / "two"
    reached, go_on, code = held(ready)
    with faulty_manager(ready, "blockmap.host.mounting", "expect", code):
        attaching = ready.start("attach", "app:1", one)
        until(reached.exists)
        ready.do("attach", "app:2", two)
        assert attaching.poll() is None
        go_on.touch()
        assert attaching.wait(LIMIT_S) == 0
        attaching.communicate()
    ready.do("detach", "--all")
    assert ready.leftovers() == []


def test_an_upgrade_replaces_it(ready: Host) -> None:
    one, two = ready.where / "one", ready.where / "two"
    copy = ready.where / "release"
    shutil.copytree(Path(blockmap.__file__).parent, copy / "blockmap", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**ready.environment, "PYTHONPATH": str(copy)}

    def upgraded(*arguments: object) -> None:
        subprocess.run([*BLOCKMAP, *map(str, arguments)], env=environment, cwd=copy, check=True, timeout=LIMIT_S)

    upgraded("attach", "app:1", one)
    first = ready.manager()
    module = copy / "blockmap/host/mounting.py"
    module.write_text(module.read_text() + "\n# another release\n")
    upgraded("attach", "app:2", two)
    second = ready.manager()
    assert second not in (None, first), ready.said()
    assert "its code has changed" in ready.said()
    ready.do("detach", one)  # by this checkout, which is another installation
    assert ready.manager() not in (None, second)
    until(lambda: not Path(f"/proc/{second}").exists())
    ready.do("detach", two)
    assert ready.leftovers() == []


def test_it_mounts_where_whoever_asks_sees_it(ready: Host, need: Callable[..., None]) -> None:
    need("unshare")
    one, two = ready.where / "one", ready.where / "two"
    ready.do("attach", "app:1", two)
    blockmap_ = " ".join(BLOCKMAP)
    script = f"{blockmap_} attach app:1 {one} && cat {one}/etc/version && {blockmap_} detach {one} && ls {one}"
    apart = ["unshare", "--mount", "sh", "-ec"]
    done = subprocess.run([*apart, script], env=ready.environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["1"]), done.stderr + ready.said()
    assert mounts.source(one) is None
    assert (two / "etc/version").read_text() == "1"
    # One that ends with what it has mounted.
    script = f"{blockmap_} attach app:2 {one} && {blockmap_} attach app:1 {one} || cat {one}/etc/version"
    done = subprocess.run([*apart, script], env=ready.environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert "something is mounted at" in done.stderr
    assert done.stdout.endswith("2")
    ready.do("detach", two)
    assert ready.leftovers() == []


def test_it_ends_when_nothing_is_attached_any_more(ready: Host) -> None:
    one = ready.where / "one"
    process = ready.start("devices", "--idle-exit", "0.2")
    until(lambda: answers(ready.state))
    ready.do("attach", "app:1", one)
    end = time.monotonic() + 1
    until(lambda: time.monotonic() > end)
    assert process.poll() is None
    ready.do("detach", one)
    _, said = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, "nothing has been attached for 0.2 s" in said) == (0, True), said


@pytest.mark.parametrize("seconds", [0.3, 4.0])
def test_what_is_in_use_when_it_is_detached_is_taken_apart_later(ready: Host, seconds: float) -> None:
    """A container that starts meanwhile has a mount of the host for a moment; one that keeps it has it for long."""
    one = ready.where / "one"
    process = ready.start("devices", "--idle-exit", "0.2")
    until(lambda: answers(ready.state))
    ready.do("attach", "app:1", one)
    apart = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"echo; exec sleep {seconds}"]
    with subprocess.Popen(apart, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        ready.do("detach", one)
        assert (ready.leftovers() == []) == (seconds < 1)
    until(lambda: ready.leftovers() == [])
    process.communicate(timeout=LIMIT_S)


def test_a_unit_takes_the_place_of_one_that_was_started_on_demand(ready: Host) -> None:
    ready.do("attach", "app:1", ready.where / "one")
    first = ready.manager()
    unit = ready.start("devices")
    until(lambda: ready.manager() == unit.pid and answers(ready.state))
    until(lambda: not Path(f"/proc/{first}").exists())
    assert ready.do("devices", "--idle-exit", "60") == "", "one is enough"
    ready.do("detach", ready.where / "one")
    unit.terminate()
    assert unit.communicate(timeout=LIMIT_S) == ("", "")
    assert unit.returncode == 0


def test_it_serves_root_alone(ready: Host) -> None:
    ready.do("attach", "app:1", ready.where / "one")
    asks = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b'{}\\n'); print(s.recv(9))"
    path = ready.state / socket_name()

    def asked(where: object, *fds: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", asks, str(where)]
        return subprocess.run(command, user=65534, capture_output=True, text=True, pass_fds=fds, check=False)

    assert "Permission denied" in asked(path).stderr
    path.chmod(0o666)
    ready.state.chmod(0o711)
    folder = os.open(ready.state, os.O_PATH)
    try:
        done = asked(f"/proc/self/fd/{folder}/{path.name}", folder)
    finally:
        os.close(folder)
    assert "b''" in done.stdout or "Connection reset" in done.stderr or "Broken pipe" in done.stderr
    assert "uid 65534 was refused" in ready.said()
    ready.do("detach", ready.where / "one")


def test_a_disk_without_ext4_is_named(ready: Host) -> None:
    disk = ready.where / "disk.raw"
    with open(disk, "wb") as file:
        file.truncate(1 << 20)
        file.seek(510)
        file.write(b"\x55\xaa")
    ready.do("import", "--quiet", disk, "disk:1")
    done = ready.run("attach", "disk:1", ready.where / "one")
    assert done.returncode == 1
    assert (
        "disk:1 has no ext4 file system in it (it was imported from a disk image): use it with an NBD client"
        in done.stderr
    )
    assert ready.leftovers() == []


def test_detach_takes_a_directory_or_all(ready: Host) -> None:
    assert ready.run("detach").returncode == 2
    assert ready.run("detach", "--all", ready.where / "one").returncode == 2
    assert ready.do("detach", "--all") == ""


def test_a_killed_server_is_started_again_while_a_device_needs_it(ready: Host) -> None:
    one = ready.where / "one"
    ready.do("attach", "app:1", one)
    before, server = ready.nbdkit(), ready.server
    assert server is not None
    ready.server = None  # whoever starts the next, it is none of ours
    server.kill()
    server.wait()

    def now() -> int | None:
        try:
            return ready.nbdkit()
        except HostError:
            return None

    until(lambda: now() not in (None, before), ready.said)
    assert f"the server at {ready.socket} was killed: it is started again" in ready.said()
    until(lambda: f"{one} is unmounted: the server behind it has gone" in ready.said(), ready.said)
    ready.do("attach", "app:1", one)
    assert (one / "data/content").read_bytes() == CONTENT
    ready.do("detach", one)
    assert ready.leftovers() == []
