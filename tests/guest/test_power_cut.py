"""A guest that loses its power while it writes to a clone by the kernel's own nbd: what it synced is there."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.conftest import CHECKOUT, Guest
from tests.serve.conftest import Server, bare_server
from tests.waiting import free_ports, until

pytestmark = pytest.mark.guest

SLOTS = 8
BLOCK = 4096

# New files, and blocks of a file of the image that are written over and over.
SCRIPT = """
set -eu
nbd-client -N c 10.0.2.2 $PORT /dev/nbd0 -b 4096 >/dev/null
mount -t ext4 /dev/nbd0 /mnt
n=$FIRST
while :; do
    seq 1 $((n * 40)) | dd of=/mnt/f$n bs=64k conv=fsync 2>/dev/null
    echo synced file $n
    yes $n | head -c 4096 | dd of=/mnt/slots bs=4096 seek=$((n % 8)) conv=notrunc,fsync 2>/dev/null
    echo synced slot $n
    n=$((n + 1))
done
"""
AFTER = """
set -eu
nbd-client -N c 10.0.2.2 $PORT /dev/nbd0 -b 4096 >/dev/null
mount -t ext4 /dev/nbd0 /mnt
umount /mnt
e2fsck -fn /dev/nbd0 >&2
nbd-client -d /dev/nbd0
if dmesg | grep -E 'I/O error|EXT4-fs (error|warning)'; then exit 1; fi
dmesg | grep -E 'EXT4-fs.*recovery complete'
"""


@pytest.fixture
def served(tmp_path: Path, need: Callable[..., None]) -> Iterator[tuple[Server, int]]:
    """A server with a clone c of an ext4 file system, and its TCP port."""
    need("nbdkit", "mke2fs", "e2fsck", "debugfs", "nbdcopy", "qemu-system-x86_64", "nbd-client", "busybox")
    (port,) = free_ports(1)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/slots").write_bytes(bytes(SLOTS * BLOCK))
    disk = tmp_path / "disk.raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tmp_path / "tree", disk, "64M"], check=True)
    with bare_server(tmp_path) as server:
        server.run("import", disk, "disk:1", "--quiet")
        server.start("--listen", f"127.0.0.1:{port}")
        server.run("clone", "disk:1", "c")
        yield server, port


def cut(server: Server, port: int, first: int, syncs: int) -> list[tuple[str, int]]:
    """Runs the writer, cuts its power after so many syncs, and kills nbdkit; returns what was synced."""
    command = [str(CHECKOUT / "tools/guest"), f"--set=PORT={port}", f"--set=FIRST={first}", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        try:
            writer.stdin.write(SCRIPT)
            writer.stdin.close()
            said = [writer.stdout.readline() for _ in range(syncs)]
        finally:
            writer.terminate()  # it kills QEMU
        pid = server.nbdkit()
        os.kill(pid, signal.SIGKILL)
        said += writer.stdout.readlines()
    until(lambda: server.client.answers() and server.nbdkit() != pid)
    found = [re.fullmatch(r"synced (file|slot) (\d+)\n", line) for line in said]
    assert all(found[:syncs]), said
    return [(each[1], int(each[2])) for each in found if each is not None]  # the last line may be cut off


def check(server: Server, synced: list[tuple[str, int]]) -> None:
    """Replays the journal on a copy, which is sound then, and has all that was synced."""
    copy, out = server.where / "copy.raw", server.where / "out"
    subprocess.run(["nbdcopy", server.uri("c"), str(copy)], check=True)
    assert subprocess.run(["e2fsck", "-fp", copy], capture_output=True, check=False).returncode in (0, 1)
    subprocess.run(["e2fsck", "-fn", copy], check=True, capture_output=True)
    out.mkdir()
    subprocess.run(["debugfs", "-R", f"rdump / {out}", copy], check=True, capture_output=True)
    slots = (out / "slots").read_bytes()
    assert len(slots) == SLOTS * BLOCK
    last: dict[int, int] = {}
    for what, n in synced:
        if what == "file":
            assert (out / f"f{n}").read_bytes() == b"".join(b"%d\n" % i for i in range(1, n * 40 + 1))
        else:
            last[n % SLOTS] = n
    for slot, n in last.items():
        written = slots[slot * BLOCK : (slot + 1) * BLOCK]
        later = int(written.split(b"\n", 1)[0])
        assert later in (n, n + SLOTS)
        assert written == (b"%d\n" % later * BLOCK)[:BLOCK]


def test_what_a_guest_synced_outlives_its_power(served: tuple[Server, int]) -> None:
    server, port = served
    check(server, cut(server, port, 1, 40))


@pytest.mark.long
def test_the_kernel_replays_its_journal(served: tuple[Server, int], guest: Guest) -> None:
    server, port = served
    synced = []
    for number in range(4):
        synced += cut(server, port, number * 1000 + 1, 30 + 17 * number)
        guest(AFTER, set={"PORT": port})
        copy = server.where / "copy.raw"
        copy.unlink(missing_ok=True)
    check(server, synced)
