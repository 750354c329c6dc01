"""An imported image in Debian's own kernel: blockmap serves, nbd.ko and stock nbd-client attach."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.conftest import Guest
from tests.waiting import free_ports

pytestmark = pytest.mark.guest

FILE = "usr/bin/redis-server"
START_S = 60.0

# An image's programs need its own loader and libraries: chroot proves that the whole path works.
SCRIPT = """
set -eu
nbd-client -N sample:latest 10.0.2.2 $PORT /dev/nbd0 -b 4096
blockdev --getsize64 /dev/nbd0
blockdev --getro /dev/nbd0
mount -o ro -t ext4 /dev/nbd0 /mnt
chroot /mnt /usr/bin/redis-server --version
sha256sum /mnt/$FILE
find /mnt -xdev -type f -exec cat {} + | wc -c
cat /mnt/etc/redis/redis.conf
umount /mnt
nbd-client -d /dev/nbd0
if dmesg | grep -E 'I/O error|EXT4-fs (error|warning)'; then exit 1; fi
"""


@pytest.fixture
def port(need: Callable[..., None], sample_image: Path, tmp_path: Path) -> Iterator[int]:
    """The TCP port of a server on loopback that exports the sample image as sample:latest."""
    need("nbdkit")
    (port,) = free_ports(1)
    environment = {
        **os.environ,
        "BLOCKMAP_STORE": str(tmp_path / "store"),
        "BLOCKMAP_CACHE": str(tmp_path / "cache"),
        "BLOCKMAP_SOCKET": str(tmp_path / "nbd.sock"),
    }
    blockmap = [sys.executable, "-m", "blockmap.cli.main"]
    for command in (["create"], ["import", "--quiet", f"oci:{sample_image}:latest", "sample:latest"]):
        subprocess.run([*blockmap, *command], env=environment, check=True)
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*blockmap, "serve", "--listen", f"127.0.0.1:{port}"], env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + START_S
        while subprocess.run([*blockmap, "status", "--json"], env=environment, capture_output=True).returncode:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(60)


def member(layout: Path, name: str) -> bytes:
    """A file's content as the image's topmost layer that has it gives it."""

    def blob(digest: str) -> Path:
        return layout / "blobs" / digest.replace(":", "/")

    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(index["manifests"][0]["digest"]).read_text())
    for layer in reversed(manifest["layers"]):
        with tarfile.open(blob(layer["digest"])) as archive:
            if name in archive.getnames():
                file = archive.extractfile(name)
                assert file is not None
                return file.read()
    raise AssertionError(f"no layer has {name}")


def test_an_image_runs_from_the_kernels_own_nbd_device(guest: Guest, sample_image: Path, port: int) -> None:
    output = guest(SCRIPT, set={"PORT": port, "FILE": FILE})
    assert "Redis server v=" in output
    assert f"{hashlib.sha256(member(sample_image, FILE)).hexdigest()}  /mnt/{FILE}" in output
    assert member(sample_image, "etc/redis/redis.conf").decode() in output
