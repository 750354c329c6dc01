"""fio checks what it reads: a disk that fio itself wrote, with a checksum in each block, goes through import and server."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serve.conftest import Server, bare_server

SIZE = "64m"


def fio(where: Path, *options: str) -> dict[str, object]:
    command = ["fio", "--name=checked", f"--size={SIZE}", "--bs=4k", "--verify=crc32c", "--verify_fatal=1", *options]
    done = subprocess.run([*command, "--output-format=json"], cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    return dict(job)


@pytest.fixture
def written(tmp_path: Path, need: Callable[..., None]) -> Iterator[tuple[Server, Path]]:
    """A server with the volume disk:1, and the file that fio wrote."""
    need("nbdkit", "fio", "qemu-img")
    disk = tmp_path / "disk.raw"
    fio(tmp_path, f"--filename={disk}", "--rw=randwrite", "--do_verify=0", "--randseed=1")
    with bare_server(tmp_path) as server:
        server.run("import", disk, "disk:1", "--quiet")
        server.start()
        yield server, disk


@pytest.mark.parametrize(("load", "depth"), [("read", 1), ("randread", 16)])
def test_fio_finds_its_checksums(written: tuple[Server, Path], tmp_path: Path, load: str, depth: int) -> None:
    server, _ = written
    job = fio(
        tmp_path,
        "--ioengine=nbd",
        f"--uri={server.uri('disk:1')}",
        f"--rw={load}",
        f"--iodepth={depth}",
        "--randseed=1",
    )
    assert job["error"] == 0
    assert job["read"]["io_bytes"] == 64 << 20  # type: ignore[index]


def test_fio_says_where_a_checksum_is_wrong(written: tuple[Server, Path], tmp_path: Path) -> None:
    """The check above can fail."""
    server, disk = written
    with open(disk, "r+b") as file:
        file.seek(10 << 20)
        file.write(bytes(100))
    server.run("import", disk, "disk:2", "--quiet")
    with pytest.raises(AssertionError, match="verify"):
        fio(tmp_path, "--ioengine=nbd", f"--uri={server.uri('disk:2')}", "--rw=read")


@pytest.mark.long
def test_a_minute_with_a_cache_that_holds_a_tenth(written: tuple[Server, Path], tmp_path: Path) -> None:
    """Two readers, 16 reads each at once, while nearly every miss evicts: fio checks every block."""
    server, _ = written
    server.stop()
    server.start("--cache-size", str((64 << 20) // 10))
    end = time.monotonic() + 60
    while time.monotonic() < end:  # fio checks each block once, however long it is told to run
        job = fio(
            tmp_path, "--ioengine=nbd", f"--uri={server.uri('disk:1')}", "--rw=randread", "--iodepth=16", "--numjobs=2",
            "--group_reporting", "--randseed=1",
        )  # fmt: skip
        assert job["error"] == 0
        assert job["read"]["io_bytes"] == 2 * 64 << 20  # type: ignore[index]
    cache = server.client.status()["cache"]
    assert cache["bytes"] <= cache["cap_bytes"] <= (64 << 20) // 10
    assert cache["evicted"] > 1000
    assert cache["damaged"] == cache["failed_writes"] == 0
