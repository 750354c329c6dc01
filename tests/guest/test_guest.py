"""The guest itself: Debian's nbd module and stock nbd-client, against nbdkit's own file plugin."""

import hashlib
import random
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.conftest import Guest

pytestmark = pytest.mark.guest

SCRIPT = """
set -eu
nbd-client -N volume 10.0.2.2 $PORT /dev/nbd0 -b 4096
mount -o ro -t ext4 /dev/nbd0 /mnt
sha256sum /mnt/folder/file
umount /mnt
nbd-client -d /dev/nbd0
"""

# nbdkit is given the listening socket, as by systemd: no port is guessed, and nothing waits for it to be open.
START = 'LISTEN_PID=$$ LISTEN_FDS=1 exec nbdkit -r -f file "$1" 3<&"$2"'


def test_the_guest_mounts_what_nbdkit_serves(guest: Guest, need: Callable[..., None], tmp_path: Path) -> None:
    need("nbdkit", "mke2fs")
    content = random.Random(1).randbytes(3_000_000)
    (tmp_path / "tree" / "folder").mkdir(parents=True)
    (tmp_path / "tree" / "folder" / "file").write_bytes(content)
    disk = tmp_path / "disk"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tmp_path / "tree", disk, "16M"], check=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = subprocess.Popen(
            ["bash", "-c", START, "bash", disk, str(listener.fileno())], pass_fds=[listener.fileno()]
        )
    try:
        output = guest(SCRIPT, set={"PORT": port})
    finally:
        server.terminate()
        server.wait(30)
    assert hashlib.sha256(content).hexdigest() in output


def test_the_guest_gives_back_output_and_status(guest: Guest) -> None:
    assert guest("echo $GREETING; echo $0 >&2; exit 0", set={"GREETING": "it's here"}).startswith("it's here\n")
    with pytest.raises(AssertionError, match="status 7"):
        guest("exit 7")
