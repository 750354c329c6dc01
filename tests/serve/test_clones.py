"""Clones in a real server, written to by real clients."""

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.control.clone_messages import MakeClone, RemoveClone
from blockmap.format import BLOCK, keys
from blockmap.format.digest import from_hex
from tests.serve.conftest import Server, bare_server, content
from tests.serve.nbd import CMD_TRIM, CMD_ZERO, FAST_ZERO, FUA, NO_HOLE, Nbd, RefusedError
from tests.waiting import until

DISK = content("disk", 8 << 20) + bytes(24 << 20)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory, need: Callable[..., None]) -> Iterator[Server]:
    """A server with a small disk, disk:1."""
    need("nbdkit")
    with bare_server(tmp_path_factory.mktemp("disks")) as server:
        (server.where / "disk.raw").write_bytes(DISK)
        server.run("import", server.where / "disk.raw", "disk:1", "--quiet")
        server.start()
        yield server


@pytest.fixture
def cloned(disks: Server) -> Iterator[Server]:
    """The same with a clone of it, c."""
    disks.client.ask(MakeClone("disk:1", "c"))
    yield disks
    for each in listed(disks):
        disks.client.ask(RemoveClone(str(each["name"])))
    assert not list((disks.store / "pins").rglob("clone-*"))


def open_clone(server: Server, name: str = "c") -> Nbd:
    return Nbd(server.socket, name)


def copied(server: Server, name: str, where: Path) -> bytes:
    where.unlink(missing_ok=True)
    subprocess.run(["nbdcopy", server.uri(name), str(where)], check=True)
    return where.read_bytes()


def listed(server: Server) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(server.run("clones", "--json").stdout)
    return found


def test_a_clone_says_what_it_can_and_an_image_stays_as_it_was(cloned: Server, need: Callable[..., None]) -> None:
    need("nbdinfo")

    def about(name: str) -> dict[str, object]:
        done = subprocess.run(
            ["nbdinfo", "--json", "--no-content", cloned.uri(name)], capture_output=True, text=True, check=True
        )
        found: dict[str, object] = json.loads(done.stdout)["exports"][0]
        return found

    clone, image = about("c"), about("disk:1")
    can = ("can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_multi_conn")
    assert [clone[each] for each in can] == [True] * 6
    assert not clone["is_read_only"]
    assert image["is_read_only"]
    assert clone["export-size"] == image["export-size"] == len(DISK)
    out = subprocess.run(["nbdinfo", "--list", cloned.uri("")], capture_output=True, text=True, check=True).stdout
    assert 'export="c"' in out
    with open_clone(cloned) as clone_client, Nbd(cloned.socket, "disk:1") as image_client:
        clone_client.write(0, b"x" * BLOCK)
        with pytest.raises(OSError, match="error"):
            image_client.write(0, b"x" * BLOCK)
        assert image_client.read(0, BLOCK) == DISK[:BLOCK]


def test_qemu_and_libnbd_agree_with_a_file(cloned: Server, tmp_path: Path, need: Callable[..., None]) -> None:
    """The same commands on the clone and on a plain copy."""
    need("qemu-io", "qemu-img", "nbdcopy")
    plain = tmp_path / "plain.raw"
    plain.write_bytes(DISK)
    commands = [
        "write -P 0x5a 1M 64k", "write -P 0x11 5000 3000", "write -z 2M 1M", "write -z -u 3M 64k", "discard 512k 256k",
        "write -P 0x22 4095 2", "write -f -P 0x33 16M 128k", "write -P 0x44 2100k 8k", "flush",
        "read -P 0x5a 1M 64k", "read -P 0x44 2100k 8k", "read -P 0 2M 52k", "read -P 0 512k 256k",
    ]  # fmt: skip
    arguments = [part for command in commands for part in ("-c", command)]
    for where in (cloned.uri("c"), str(plain)):
        done = subprocess.run(
            ["qemu-io", "-d", "unmap", "-f", "raw", *arguments, where], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
        assert "failed" not in done.stdout
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", str(plain), cloned.uri("c")], check=True)
    assert copied(cloned, "c", tmp_path / "out.raw") == plain.read_bytes()
    other = random.Random(1).randbytes(4 << 20) + bytes(len(DISK) - (4 << 20))
    (tmp_path / "in.raw").write_bytes(other)
    subprocess.run(["nbdcopy", "--flush", str(tmp_path / "in.raw"), cloned.uri("c")], check=True)
    assert copied(cloned, "c", tmp_path / "out.raw") == other
    assert copied(cloned, "disk:1", tmp_path / "out.raw") == DISK


@pytest.mark.parametrize("sizes", ["4k-64k", "512-9000"])
def test_fio_finds_what_it_wrote(cloned: Server, tmp_path: Path, need: Callable[..., None], sizes: str) -> None:
    need("fio")
    command = [
        "fio", "--name=clone", "--ioengine=nbd", f"--uri={cloned.uri('c')}", "--rw=randwrite", f"--bsrange={sizes}",
        "--bs_unaligned", "--size=24m", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--fsync=200",
        "--randseed=1",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_zeros_with_and_without_their_space(cloned: Server) -> None:
    def blocks() -> int:
        return sum(os.stat(each).st_blocks for each in (cloned.where / "state/layers").iterdir())

    with open_clone(cloned) as client:
        client.change(CMD_ZERO, 0, 4 << 20, FAST_ZERO)
        assert blocks() == 0
        assert client.read(0, BLOCK) == bytes(BLOCK)
        client.change(CMD_ZERO, 0, 4 << 20, NO_HOLE | FUA)
        assert blocks() * 512 >= 4 << 20
        client.change(CMD_TRIM, 0, 4 << 20)
        assert blocks() == 0
    with Nbd(cloned.socket, "c", structured=True) as client:
        assert client.status(0, 6 << 20)[0] == (4 << 20, 3)


def test_what_was_answered_outlives_the_server(cloned: Server, tmp_path: Path, need: Callable[..., None]) -> None:
    """Killed again and again under a writer that flushes now and then: what was answered is there, flushed or not, since the
    client's next flush answers for it; what was not answered is there or not."""
    need("nbdcopy")
    choice = random.Random(1)
    model = bytearray(DISK)
    for _ in range(4):
        with open_clone(cloned) as client:
            for number in range(60):
                at, count = choice.randrange(len(DISK) - 9000), choice.choice([1, 512, BLOCK, 9000])
                if number % 5 == 4:
                    client.change(CMD_TRIM, at, count)
                    model[at : at + count] = bytes(count)
                else:
                    data = choice.randbytes(count)
                    client.write(at, data, FUA if number % 7 == 6 else 0)
                    model[at : at + count] = data
                if number % 20 == 10:
                    client.flush()
            pid = cloned.nbdkit()
            os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: cloned.client.answers() and cloned.nbdkit() != pid)  # type: ignore[misc]
        with open_clone(cloned) as client:
            client.flush()
    assert copied(cloned, "c", tmp_path / "out.raw") == model
    cloned.stop()
    cloned.start()
    assert copied(cloned, "c", tmp_path / "out.raw") == model


def test_a_flush_by_one_client_is_for_what_all_wrote(cloned: Server) -> None:
    """Clients may share a clone, as multi-conn says: what was answered to one is on record once another's flush is."""
    with open_clone(cloned) as one, open_clone(cloned) as other:
        one.write(0, b"x" * 3 * BLOCK)
        assert other.read(0, BLOCK) == b"x" * BLOCK
        assert listed(cloned)[0]["written_bytes"] == 0
        other.flush()
        assert listed(cloned)[0]["written_bytes"] == 3 * BLOCK
        one.write(8 * BLOCK, b"y" * BLOCK)
        other.write(12 * BLOCK, b"z" * BLOCK, FUA)
        assert listed(cloned)[0]["written_bytes"] == 5 * BLOCK


def test_qemu_notices_nothing_of_servers_that_are_killed(
    cloned: Server, tmp_path: Path, need: Callable[..., None]
) -> None:
    """QEMU's client connects again by itself: no request fails, and what a flush answered for is there."""
    need("qemu-io", "nbdcopy", "stdbuf")
    count, model = 150, bytearray(DISK)
    arguments = []
    for number in range(count):
        at = number * 7919 % (len(DISK) // BLOCK) * BLOCK
        arguments += ["-c", f"write -P {number + 1} {at} {BLOCK}", "-c", "flush"]
        model[at : at + BLOCK] = bytes([number + 1]) * BLOCK
    where = f"driver=nbd,server.type=unix,server.path={cloned.socket},export=c,reconnect-delay=60"
    command = ["stdbuf", "-oL", "qemu-io", *arguments, "--image-opts", where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as writer:
        assert writer.stdout is not None
        done, killed = 0, set()
        for line in writer.stdout:
            assert "failed" not in line, line
            done += line.startswith("wrote ")
            if done % 40 == 10 and done not in killed:
                killed.add(done)
                os.kill(cloned.nbdkit(), signal.SIGKILL)
    assert writer.returncode == 0
    assert (done, len(killed)) == (count, 4)
    os.kill(pid := cloned.nbdkit(), signal.SIGKILL)
    until(lambda: cloned.client.answers() and cloned.nbdkit() != pid)
    assert copied(cloned, "c", tmp_path / "out.raw") == model


def test_one_server_at_a_time_writes_to_a_clone(cloned: Server, tmp_path: Path) -> None:
    other = Server(tmp_path / "other")
    other.environment = {
        **cloned.environment,
        "BLOCKMAP_SOCKET": str(other.socket),
        "BLOCKMAP_CACHE": str(other.cache),
    }
    other.start()
    try:
        with open_clone(cloned) as client:
            client.write(0, b"a" * BLOCK)
            with pytest.raises(RefusedError):
                open_clone(other)
            until(lambda: f"c is in use by the server of {cloned.cache}, process {cloned.nbdkit()}" in other.said())
            assert listed(cloned)[0]["in_use_by"] == f"the server of {cloned.cache}, process {cloned.nbdkit()}"
            for server in (cloned, other):
                done = server.run("rm", "c", check=False)
                assert done.returncode == 1
                assert "in use by" in done.stderr
        until(lambda: listed(cloned)[0]["in_use_by"] is None)
        with open_clone(other) as client:
            assert client.read(0, BLOCK) == b"a" * BLOCK
    finally:
        other.stop()


def test_names_sizes_and_removal(cloned: Server) -> None:
    def refused(*arguments: str) -> str:
        done = cloned.run(*arguments, check=False)
        assert done.returncode in (1, 2)
        assert len(done.stderr.splitlines()) == 1
        return done.stderr

    assert "a clone c already" in refused("clone", "disk:1", "c")
    assert "is a clone" in refused("clone", "c", "d")
    assert "no image disk:2" in refused("clone", "disk:2", "d")
    for name in ("D", "a:1", "a/b", "a@b", "a+b", "a-", "a" * 65, ""):
        assert "is not a name for a clone" in refused("clone", "disk:1", name)
    assert "is not a size" in refused("clone", "disk:1", "d", "--size", "big")
    for size in ("31M", "33554433", "8192T"):
        assert "a clone of disk:1 has from 33554432 to" in refused("clone", "disk:1", "d", "--size", size)
    assert "only clones are removed" in refused("rm", "disk:1")
    assert "no clone d" in refused("rm", "d")
    cloned.run("import", cloned.where / "disk.raw", "web", "--quiet")
    assert "means the image web:latest already" in refused("clone", "disk:1", "web")

    cloned.run("clone", "disk:1", "larger", "--size", "1G")
    with open_clone(cloned, "larger") as client:
        assert client.size == 1 << 30
        assert client.read(len(DISK) - BLOCK, 2 * BLOCK) == bytes(2 * BLOCK)
        client.write((1 << 30) - BLOCK, b"z" * BLOCK)
    assert [(each["name"], each["written_bytes"]) for each in listed(cloned)] == [("c", 0), ("larger", BLOCK)]
    assert "larger  disk:1" in cloned.run("clones").stdout
    cloned.run("rm", "larger", "c")
    assert listed(cloned) == []
    assert not list((cloned.where / "state/layers").iterdir())
    assert not list((cloned.where / "state/clones").iterdir())
    with pytest.raises(RefusedError):
        open_clone(cloned)
    cloned.run("clone", "disk:1", "c")
    with open_clone(cloned) as client:
        assert hashlib.sha256(client.read(0, 1 << 20)).digest() == hashlib.sha256(DISK[: 1 << 20]).digest()


def test_a_clone_stays_on_its_version(cloned: Server, tmp_path: Path) -> None:
    cloned.run("import", cloned.where / "disk.raw", "moved:1", "--quiet")
    cloned.run("clone", "moved:1", "d")
    (tmp_path / "disk.raw").write_bytes(b"new!" * (8 << 20))
    cloned.run("import", tmp_path / "disk.raw", "moved:1", "--quiet")
    with Nbd(cloned.socket, "moved:1") as image, open_clone(cloned, "d") as clone:
        assert image.read(0, 8) == b"new!new!"
        assert clone.read(0, 8) == DISK[:8]


def fill(client: Nbd, model: dict[int, bytes]) -> None:
    """Writes blocks apart from each other, and notes those that were answered; OSError where one is not."""
    for number in range(1 << 20):
        at, data = (1 << 30) + number * 3 * BLOCK, bytes([number % 255 + 1]) * BLOCK
        client.write(at, data)
        model[at] = data


def test_the_version_of_a_clone_is_not_collected(cloned: Server, tmp_path: Path) -> None:
    cloned.run("import", cloned.where / "disk.raw", "moved:1", "--quiet")
    (tmp_path / "disk.raw").write_bytes(content("other", 4 << 20))
    cloned.run("import", tmp_path / "disk.raw", "gone:1", "--quiet")
    cloned.run("clone", "gone:1", "d")
    cloned.run("untag", "gone:1")
    base = next(str(each["base"]) for each in listed(cloned) if each["name"] == "d")
    record = cloned.store / keys.version(from_hex(base.partition("@sha256:")[2]), 1)
    collect(cloned)
    assert record.exists()
    with open_clone(cloned, "d") as client:
        assert client.read(0, 4 << 20) == content("other", 4 << 20)
    cloned.run("rm", "d")
    collect(cloned)
    assert not record.exists()


def collect(server: Server) -> None:
    for _ in range(2):  # one condemns, one deletes
        server.run("gc", "--keep", "0s", "--grace", "0s")


@pytest.mark.root
def test_a_full_disk_is_an_error_to_the_writer_and_no_damage(
    idle_server: Server, need_root: None, tmp_path: Path
) -> None:
    server = idle_server
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(state)], check=True)
    try:
        server.start()
        server.run("clone", "small:1", "c")
        model: dict[int, bytes] = {}
        with open_clone(server) as client:
            before = client.read(1 << 30, BLOCK)
            with pytest.raises(OSError, match="error") as told:
                fill(client, model)
            assert told.value.errno == errno.ENOSPC
            assert len(model) > 500
            assert client.read((1 << 30) + BLOCK, BLOCK) == before
            client.change(CMD_TRIM, 1 << 30, 300 * 3 * BLOCK)
            model = {at: each for at, each in model.items() if at >= (1 << 30) + 300 * 3 * BLOCK}
            full = max(model) + BLOCK
            client.write(full, b"z" * BLOCK, FUA)
            model[full] = b"z" * BLOCK
        server.stop()
        server.start()
        with open_clone(server) as client:
            assert client.read(1 << 30, BLOCK) == bytes(BLOCK)
            assert all(client.read(at, BLOCK) == each for at, each in model.items())
    finally:
        if server.process is not None:
            server.stop()
        subprocess.run(["umount", "-l", str(state)], check=True)
