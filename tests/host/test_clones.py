"""Clones that are mounted, and containers that run on them."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.host.conftest import CONTENT, Host, rows

pytestmark = pytest.mark.root


def check_filesystem(host: Host, export: str) -> None:
    """e2fsck finds nothing to mend in what the server shows."""
    copy = host.where / "copy.raw"
    copy.unlink(missing_ok=True)
    subprocess.run(["nbdcopy", host.uri(export), str(copy)], check=True)
    subprocess.run(["e2fsck", "-fn", str(copy)], check=True, capture_output=True)
    copy.unlink()


def grow(host: Host, export: str, where: Path) -> None:
    """Makes the file system as large as its device; while it is mounted, that takes a privilege that containers lack."""
    (device,) = [path for path, _ in rows(host)]
    subprocess.run(["umount", str(where)], check=True)
    subprocess.run(["e2fsck", "-fp", device], check=True, capture_output=True)
    subprocess.run(["resize2fs", device], check=True, capture_output=True)
    host.do("attach", export, where)


def test_what_is_written_to_a_mounted_clone_stays(mounting: Host, need: Callable[..., None]) -> None:
    need("nbdcopy", "e2fsck", "resize2fs", "fstrim")
    host = mounting
    host.serve()
    where, image = host.where / "mnt", host.where / "image"
    where.mkdir()
    image.mkdir()
    host.do("clone", "app:1", "web", "--size", "20G")
    host.do("attach", "web", where)
    (where / "data/new").write_bytes(b"new" * 100_000)
    (where / "etc/version").write_bytes(b"mine")
    (where / "data/content").unlink()
    subprocess.run(["fstrim", str(where)], check=True)
    before = os.statvfs(where)
    grow(host, "web", where)
    assert os.statvfs(where).f_blocks > before.f_blocks + (3 << 30) // before.f_frsize
    (where / "data/large").write_bytes(CONTENT * 4)
    host.do("detach", where)
    assert host.leftovers() == []
    check_filesystem(host, "web")
    host.do("attach", "web", where)
    host.do("attach", "app:1", image)
    assert (where / "data/new").read_bytes() == b"new" * 100_000
    assert (where / "data/large").read_bytes() == CONTENT * 4
    assert (where / "etc/version").read_bytes() == b"mine"
    assert not (where / "data/content").exists()
    assert (image / "etc/version").read_bytes() == b"1"
    assert (image / "data/content").read_bytes() == CONTENT
    assert "in use by" in host.run("rm", "web").stderr
    host.do("detach", where)
    host.do("detach", image)
    host.do("rm", "web")
    assert not list((host.state / "layers").iterdir())


def test_fio_finds_what_it_wrote_through_a_mount_and_trimmed_space_comes_back(
    mounting: Host, need: Callable[..., None]
) -> None:
    need("nbdcopy", "e2fsck", "fio", "fstrim")
    host = mounting
    host.serve()
    where = host.where / "mnt"
    where.mkdir()
    host.do("clone", "app:1", "web")
    host.do("attach", "web", where)

    def taken() -> int:
        return sum(each.stat().st_blocks * 512 for each in (host.state / "layers").iterdir())

    fio = [
        "fio", "--name=clone", f"--directory={where}", "--size=24m", "--numjobs=2", "--rw=randwrite", "--bsrange=4k-64k",
        "--direct=1", "--ioengine=libaio", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--fsync=50",
        "--group_reporting",
    ]  # fmt: skip
    done = subprocess.run(fio, cwd=host.where, capture_output=True, text=True, check=False)  # where it leaves its state
    assert done.returncode == 0, done.stdout + done.stderr
    full = taken()
    assert full > 48 << 20
    for each in where.glob("clone.*"):
        each.unlink()
    subprocess.run(["sync", "-f", str(where)], check=True)  # ext4 trims what its journal has let go of
    subprocess.run(["fstrim", str(where)], check=True)
    assert taken() < full - (46 << 20)
    host.do("detach", where)
    check_filesystem(host, "web")


def test_a_container_runs_on_a_clone(mounting: Host, need: Callable[..., None]) -> None:
    need("runc")
    host = mounting
    host.serve()
    host.do("clone", "app:1", "web")
    written = "echo hello >/data/hello; cat /etc/version"
    assert host.do("run", "--clone", "web", "--", "sh", "-c", written) == "1"
    assert host.do("run", "--clone", "web", "--", "cat", "/data/hello") == "hello\n"
    assert host.run("run", "app:1", "--", "cat", "/data/hello").returncode == 1
    assert "add --clone" in host.run("run", "web").stderr
    assert "is no clone" in host.run("run", "--clone", "app:1").stderr
    assert "there is no clone nobody: see" in host.run("run", "--clone", "nobody").stderr
    assert host.leftovers() == []


def test_what_starts_on_a_clone_read_is_learnt_until_it_is_written_to(mounting: Host) -> None:
    """Reads of the image by a start on a new clone are a start's; with something in its layers they would lack what these have."""
    host = mounting
    host.serve("--no-learn")
    where = host.where / "mnt"
    where.mkdir()
    host.do("clone", "app:1", "web")
    for begun in (1, 1):
        host.do("attach", "web", where)
        assert Path(where / "data/content").read_bytes() == CONTENT
        host.do("detach", where)
        assert host.client.status()["traces"]["begun"] == begun
