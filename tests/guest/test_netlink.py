"""Devices of the kernel's nbd by our own netlink: attached in the guest, served on the host, whose server is killed meanwhile."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.control.messages import Resolve
from tests.guest.conftest import CHECKOUT
from tests.serve.conftest import Server, bare_server, content
from tests.serve.test_outage import Web
from tests.waiting import free_ports

pytestmark = pytest.mark.guest

BEGIN = """
set -eu
export PYTHONPATH=/checkout
trap 'status=$?; [ $status = 0 ] || dmesg | grep -v "Possible stuck" | tail -n 30; exit $status' EXIT
client() { python3 /checkout/client.py "$@"; }
"""
END = """
client left
if dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|Buffer I/O'; then exit 1; fi
"""
SHORT = """
python3 /checkout/client.py watch &
client attach 10.0.2.2:$PORT small:1 /tmp/image
cat /sys/block/nbd0/backend
sha256sum /tmp/image/own
client read /dev/nbd0 6
client detach /tmp/image
kill $!
"""
# The watcher is killed ten times, at any moment, while the host kills what serves.
READING = """
client attach 10.0.2.2:$PORT small:1 /tmp/image
(for number in 1 2 3 4 5 6 7 8 9 10; do
    python3 /checkout/client.py watch & watcher=$!
    sleep $((SECONDS_EACH + number % 3))
    kill -9 $watcher
    echo killed watcher $number
done; exec python3 /checkout/client.py watch) & watchers=$!
client read /dev/nbd0 $ROUNDS
sha256sum /tmp/image/own
client detach /tmp/image
kill $watchers
"""
WRITING = """
python3 /checkout/client.py watch &
client attach 10.0.2.2:$PORT c /tmp/clone write
client write /tmp/clone $COUNT
client detach /tmp/clone
client attach 10.0.2.2:$PORT c /tmp/clone write
for number in $(seq 0 $((COUNT - 1))); do
    yes $number | head -n 5000 | cmp - /tmp/clone/file$number
done
device=$(awk '$2 == "/tmp/clone" { print $1 }' /proc/mounts)
umount /tmp/clone
e2fsck -fn $device >&2
kill $!
client detach /tmp/clone || client left
"""
CYCLES = """
client cycles 10.0.2.2:$PORT small:1 100
client many 10.0.2.2:$PORT small:1 50
"""

# The superblock has come with the attach, the rest has not when the store goes.
AWAY = """
python3 /checkout/client.py watch &
client attach 10.0.2.2:$PORT small:1 /tmp/image
echo round
client read /dev/nbd0 1
client detach /tmp/image
kill $!
"""
AWAY_S = 60.0

Served = tuple[Server, int]


@pytest.fixture
def served(tmp_path: Path, need: Callable[..., None]) -> Iterator[Served]:
    """A server with small:1, 16 MiB of which 6 are in files, and its clone c, and its TCP port."""
    need("nbdkit", "qemu-system-x86_64", "busybox", "nbd-client", "mke2fs")
    (port,) = free_ports(1)
    (tmp_path / "tree").mkdir()
    for name in ("own", "other"):
        (tmp_path / "tree" / name).write_bytes(content(name, 3_000_000))
    disk = tmp_path / "disk.raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tmp_path / "tree", disk, "16M"], check=True)
    with bare_server(tmp_path) as server:
        server.run("import", disk, "small:1", "--quiet")
        server.start("--listen", f"127.0.0.1:{port}")
        server.run("clone", "small:1", "c")
        yield server, port


def run(script: str, on_round: Callable[[int], None] = lambda _: None, *options: str, **variables: object) -> str:
    """Runs a script in the guest, and calls `on_round` whenever it has read or written once more; returns what it printed."""
    settings = [f"--set={name}={value}" for name, value in variables.items()]
    add = [
        f"--add={CHECKOUT}/{path}:/checkout/{name}"
        for path, name in (("blockmap", "blockmap"), ("tests/guest/client.py", "client.py"))
    ]
    command = [str(CHECKOUT / "tools/guest"), "--python", *add, *options, *settings, "-"]
    said, rounds = "", 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as guest:
        assert guest.stdin is not None
        assert guest.stdout is not None
        try:
            guest.stdin.write(BEGIN + script + END)
            guest.stdin.close()
            for line in guest.stdout:
                said += line
                if line.startswith("round"):
                    on_round(rounds)
                    rounds += 1
        except BaseException:
            guest.terminate()  # it kills QEMU
            raise
    assert guest.returncode == 0, said
    assert "connected [], folders []" in said, said
    return said


def kill_nbdkit(server: Server, *_: str) -> None:
    pid = server.nbdkit()
    os.kill(pid, signal.SIGKILL)
    server.wait_next(pid)


def kill_supervisor(server: Server, *arguments: str) -> None:
    """As it is killed and started again by systemd."""
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    server.start(*arguments)


def restart(server: Server, *arguments: str) -> None:
    server.stop()
    server.start(*arguments)


class Killer:
    """Ends the server at every other round, a number of times, in the ways that it is given, in turns."""

    def __init__(self, served: Served, kills: int, *ways: Callable[..., None]) -> None:
        self._server, self._listen = served[0], ("--listen", f"127.0.0.1:{served[1]}")
        self._left = [ways[number % len(ways)] for number in range(kills)]

    def __call__(self, round: int) -> None:
        if self._left and round % 2 == 0:
            self._left.pop()(self._server, *self._listen)

    @property
    def is_done(self) -> bool:
        return not self._left


def test_a_device_outlives_its_server(served: Served) -> None:
    server, port = served
    killer = Killer(served, 3, kill_nbdkit, kill_supervisor, restart)
    said = run(SHORT, killer, PORT=port)
    assert killer.is_done
    assert f"\n{server.client.ask(Resolve('small:1')).export.partition('@')[2]} /tmp/state/devices/" in said


@pytest.mark.long
@pytest.mark.parametrize("suite", ["", "trixie"], ids=["bookworm", "trixie"])
@pytest.mark.parametrize("way", [kill_nbdkit, kill_supervisor, restart])
def test_reads_outlive_servers_and_watchers(served: Served, suite: str, way: Callable[..., None]) -> None:
    killer = Killer(served, 10, way)
    said = run(READING, killer, f"--suite={suite}", PORT=served[1], ROUNDS=30, SECONDS_EACH=2)
    assert killer.is_done
    assert said.count("killed watcher") == 10, said


@pytest.mark.long
@pytest.mark.parametrize("suite", ["", "trixie"], ids=["bookworm", "trixie"])
@pytest.mark.parametrize("way", [kill_nbdkit, kill_supervisor, restart])
def test_what_was_synced_outlives_servers(served: Served, suite: str, way: Callable[..., None]) -> None:
    killer = Killer(served, 10, way)
    run(WRITING, killer, f"--suite={suite}", PORT=served[1], COUNT=25)
    assert killer.is_done


@pytest.mark.long
@pytest.mark.parametrize("suite", ["", "trixie"], ids=["bookworm", "trixie"])
def test_devices_come_and_go(served: Served, suite: str) -> None:
    said = run(CYCLES, lambda _: None, f"--suite={suite}", PORT=served[1])
    assert "100 cycles, 1 content" in said
    assert "50 devices, 1 content" in said


@pytest.mark.long
def test_a_store_that_is_away_for_a_minute_is_waited_for(
    served: Served, tmp_path: Path, need: Callable[..., None]
) -> None:
    """The device waits as long as the server does: nothing between them has a shorter limit."""
    need("nginx")
    server, port = served
    (tmp_path / "nginx").mkdir()
    web = Web(tmp_path / "nginx", server.store)
    web.start()
    server.stop()
    shutil.rmtree(server.cache)
    server.start("--listen", f"127.0.0.1:{port}", "--store", web.url, "--outage", "wait=90")
    away: list[threading.Timer] = []

    def on_round(number: int) -> None:
        if number:
            return
        web.stop()
        away.append(threading.Timer(AWAY_S, web.start))
        away[0].start()

    try:
        said = run(AWAY, on_round, PORT=port)
    finally:
        away[0].join()
        web.stop()
    assert server.client.status()["fetch"]["outages"] == 1
    slowest = float(said.rpartition("slowest read ")[2].split()[0])
    assert slowest > AWAY_S / 2
