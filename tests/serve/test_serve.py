"""The plugin inside real nbdkit, with real clients."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.control.messages import Resolve
from blockmap.format.refs import parse_reference
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from tests.cache.contents import nameless
from tests.serve.conftest import Server
from tests.serve.nbd import CMD_READ, Nbd, RefusedError
from tests.waiting import free_ports, until


def stored(server: Server, export: str) -> Callable[[int, int], bytes]:
    """Reads a volume from the store, past server and cache."""
    repository, _ = server.volume(export)
    return stored_reader(repository, find_version(repository, parse_reference(export)).version.root)


def data_ranges(server: Server, export: str) -> list[tuple[int, int]]:
    out = subprocess.run(["nbdinfo", "--json", "--map", server.uri(export)], capture_output=True, text=True, check=True)
    return [(each["offset"], each["length"]) for each in json.loads(out.stdout) if each["type"] == 0]


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_catalogue_and_sizes(server: Server, need: Callable[..., None]) -> None:
    need("nbdinfo")
    out = subprocess.run(["nbdinfo", "--list", "--json", server.uri("")], capture_output=True, text=True, check=True)
    exports = json.loads(out.stdout)["exports"]
    assert [each["export-name"] for each in exports] == ["small:1"]
    assert exports[0]["export-size"] == 16 << 30
    assert exports[0]["is_read_only"]
    assert exports[0]["can_multi_conn"]
    assert exports[0]["block_size_preferred"] == 4096


def test_a_name_is_served_as_it_was(server: Server, images: Path, tmp_path: Path, need: Callable[..., None]) -> None:
    need("nbdcopy")
    before = stored(server, "small:1")(0, 16 << 20)
    server.run("import", f"oci:{images}/2:2", "small:1", "--platform", "linux/amd64")
    assert stored(server, "small:1")(0, 16 << 20) != before
    for past, same in (("1", True), ("2", False)):
        uri = server.uri(f"small:1@%7B{past}%7D")
        copy = tmp_path / past
        subprocess.run(["nbdcopy", uri, str(copy)], check=True)
        with open(copy, "rb") as file:
            assert (file.read(16 << 20) == before) == same
    done = subprocess.run(["nbdinfo", server.uri("small:1@%7B3%7D")], capture_output=True, text=True)
    assert done.returncode != 0
    until(lambda: "was no image at 3" in server.said())


def test_nbdcopy_and_qemu_agree_with_the_store(server: Server, tmp_path: Path, need: Callable[..., None]) -> None:
    need("nbdcopy", "qemu-img", "nbdinfo")
    copy = tmp_path / "copy.raw"
    subprocess.run(["nbdcopy", server.uri("small:1"), str(copy)], check=True)
    assert os.stat(copy).st_blocks * 512 < 64 << 20  # holes were seen as such
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", str(copy), server.uri("small:1")], check=True)
    read = stored(server, "small:1")
    with open(copy, "rb") as file:
        for offset, length in data_ranges(server, "small:1"):
            assert os.pread(file.fileno(), length, offset) == read(offset, length)
    subprocess.run(["e2fsck", "-fn", str(copy)], check=True, capture_output=True)


def test_fio_reads(server: Server, need: Callable[..., None]) -> None:
    need("fio")
    command = [
        "fio",
        "--name=x",
        "--ioengine=nbd",
        f"--uri={server.uri('small:1')}",
        "--rw=randread",
        "--bsrange=4k-128k",
    ]
    done = subprocess.run([*command, "--size=64m", "--iodepth=16", "--io_size=32m"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_any_alignment(server: Server) -> None:
    read, nbd = stored(server, "small:1"), Nbd(server.socket, "small:1")
    for offset, length in (
        (0, 1),
        (1023, 4099),
        (4095, 2),
        (50 << 20, 300_001),
        (nbd.size - 3, 3),
        ((16 << 20) - 5, 11),
    ):
        assert nbd.read(offset, length) == read(offset, length)
    nbd.close()


def test_an_export_by_digest_and_unknown_ones(server: Server) -> None:
    pinned = server.client.ask(Resolve("small:1")).export
    assert re.fullmatch("small@sha256:[0-9a-f]{64}", pinned)
    Nbd(server.socket, pinned).close()
    Nbd(server.socket, "").close()  # the only export
    for name in ("small:2", "other:1", "small@sha256:" + "0" * 64, "../etc", "small:1\n"):
        with pytest.raises(RefusedError):
            Nbd(server.socket, name)
    until(lambda: server.said().count("'other:1' was refused: there is no image") == 1)
    assert "Traceback" not in server.said()


def test_imports_show_at_once_and_moved_tags_change_no_open_export(server: Server, images: Path) -> None:
    before, read = Nbd(server.socket, "small:1"), stored(server, "small:1")
    server.run("import", f"oci:{images}/2:2", "small:2", "--platform", "linux/amd64")
    Nbd(server.socket, "small:2").close()
    server.run("import", f"oci:{images}/2:2", "small:1", "--platform", "linux/amd64")
    after, moved = Nbd(server.socket, "small:1"), stored(server, "small:1")
    assert read(0, 60 << 20) != moved(0, 60 << 20)
    for offset in range(0, 60 << 20, 4 << 20):
        assert before.read(offset, 4 << 20) == read(offset, 4 << 20)
        assert after.read(offset, 4 << 20) == moved(offset, 4 << 20)
    before.close()
    after.close()


def test_what_was_read_is_read_from_the_cache_without_the_store(server: Server) -> None:
    nbd, read = Nbd(server.socket, "small:1"), stored(server, "small:1")
    expected = read(0, 60 << 20)
    for offset in range(0, 60 << 20, 4 << 20):
        nbd.read(offset, 4 << 20)
    (server.store / "packs").rename(server.where / "elsewhere")
    for offset in range(0, 60 << 20, 4 << 20):
        assert nbd.read(offset, 4 << 20) == expected[offset : offset + (4 << 20)]
    nbd.close()


def test_a_damaged_pack_is_an_io_error_and_said(idle_server: Server, need: Callable[..., None]) -> None:
    server = idle_server
    need("nbdinfo")
    read = stored(server, "small:1")
    packs = sorted((server.store / "packs").rglob("*"), key=lambda path: path.stat().st_size)
    size = packs[-1].stat().st_size
    good = read(0, 60 << 20)
    for at in range(size // 2, size, 5000):
        flip(packs[-1], at)
    server.start()
    nbd = Nbd(server.socket, "small:1")
    codes = set()
    for offset in range(0, 60 << 20, 1 << 16):
        try:
            data = nbd.read(offset, 1 << 16)
        except OSError as error:
            codes.add(error.errno)
        else:
            assert data == good[offset : offset + (1 << 16)]
    nbd.close()
    assert codes == {errno.EIO}
    until(lambda: f"pack {packs[-1].name} is damaged" in server.said())
    assert server.client.status()["fetch"]["damaged"]


def test_a_damaged_cache_is_never_served(server: Server) -> None:
    read = stored(server, "small:1")
    good = read(0, 60 << 20)
    nbd = Nbd(server.socket, "small:1")
    for offset in range(0, 60 << 20, 4 << 20):
        nbd.read(offset, 4 << 20)
    nbd.close()
    assert server.stop() == 0
    size = (server.cache / "data").stat().st_size
    for at in range(0, size, 150_001):
        flip(server.cache / "data", at)
    server.start()
    nbd = Nbd(server.socket, "small:1")
    for offset in range(0, 60 << 20, 4 << 20):
        assert nbd.read(offset, 4 << 20) == good[offset : offset + (4 << 20)]
    nbd.close()
    status = server.client.status()
    assert status["cache"]["damaged"] > 10
    until(lambda: "is damaged; it is dropped" in server.said())


def test_a_cache_that_is_removed_is_noticed_and_begun_anew(server: Server) -> None:
    good = stored(server, "small:1")(0, 60 << 20)

    def read_all(nbd: Nbd) -> None:
        for offset in range(0, 60 << 20, 4 << 20):
            assert nbd.read(offset, 4 << 20) == good[offset : offset + (4 << 20)]

    with Nbd(server.socket, "small:1") as nbd:
        read_all(nbd)
        shutil.rmtree(server.cache)
        read_all(nbd)
        until(lambda: server.client.status()["cache"]["replaced"], server.said)
        until(lambda: not nameless(server.nbdkit(), server.cache))
        read_all(nbd)
        until(lambda: server.client.status()["cache"]["bytes"] > 1_000_000)
    until(lambda: f"the cache {server.cache} was removed or replaced while it was in use" in server.said())
    assert "began anew" in server.run("status").stdout
    assert server.stop() == 0
    server.store.rename(server.where / "away")
    server.start()
    with Nbd(server.socket, "small:1") as nbd:  # the records moved to the new directory
        (server.where / "away").rename(server.store)
        read_all(nbd)
    cache = server.client.status()["cache"]
    assert (cache["lost"], cache["damaged"]) == (0, 0)
    assert cache["bytes"] > 1_000_000


def patiently(server: Server, act: Callable[[Nbd], None], structured: bool = False) -> None:
    """Does something with a connection, once more where nbdkit 1.32 aborts meanwhile because of an earlier client."""
    for _ in range(10):
        server.wait_ready()
        try:
            with Nbd(server.socket, "small:1", structured) as nbd:
                act(nbd)
            return
        except ConnectionError:
            continue
    pytest.fail("nbdkit ended again and again")


def test_hostile_clients(server: Server) -> None:
    def hang_up(nbd: Nbd) -> None:
        for number in range(8):
            nbd.send(CMD_READ, number << 20, 1 << 20, number)

    def ask_for_all(nbd: Nbd) -> None:
        assert sum(length for length, _ in nbd.status(0, 0xFFFFFFFF)) <= 0xFFFFFFFF

    def read(nbd: Nbd) -> None:
        assert nbd.read(1 << 20, 4096) == good

    good = stored(server, "small:1")(1 << 20, 4096)
    for _ in range(3):
        patiently(server, hang_up)
    patiently(server, ask_for_all, structured=True)
    patiently(server, read)


def test_killed_readers_disturb_nobody(server: Server, need: Callable[..., None]) -> None:
    need("fio")
    command = [
        "fio", "--name=x", "--thread", "--ioengine=nbd", f"--uri={server.uri('small:1')}", "--rw=randread", "--bs=4k",
        "--iodepth=8", "--size=64m", "--time_based", "--runtime=30",
    ]  # fmt: skip
    for _ in range(3):
        reader = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while "opened" not in server.said() and time.monotonic() < end:
            time.sleep(0.01)
        reader.send_signal(signal.SIGKILL)
        reader.wait()

    def read(nbd: Nbd) -> None:
        assert nbd.read(1 << 20, 4096) == good

    good = stored(server, "small:1")(1 << 20, 4096)
    patiently(server, read)


def test_nbdkit_is_started_again(server: Server) -> None:
    old = server.nbdkit()
    os.kill(old, signal.SIGKILL)
    # No wait: the socket is the supervisor's, and a client that comes now is answered by the next nbdkit.
    nbd = Nbd(server.socket, "small:1")
    assert nbd.read(0, 4096) == stored(server, "small:1")(0, 4096)
    nbd.close()
    assert server.nbdkit() != old
    until(lambda: "nbdkit ended by signal SIGKILL" in server.said())


def test_stops_with_idle_clients_and_leaves_nothing(server: Server) -> None:
    nbd = Nbd(server.socket, "small:1")
    nbd.read(0, 4096)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 8
    nbd.close()
    assert not server.socket.exists()
    assert not server.socket.with_name("nbd.sock.ctl").exists()


def test_second_servers_are_refused(server: Server) -> None:
    done = server.run("serve", check=False)
    assert done.returncode == 1
    assert "another server is at" in done.stderr
    other = server.run("serve", "--socket", str(server.where / "other.sock"), check=False)
    assert other.returncode == 1
    assert "is in use by process" in other.stderr


def test_opens_and_closes_are_logged(server: Server) -> None:
    Nbd(server.socket, "small:1").close()
    end = time.monotonic() + 10
    while "closed" not in server.said() and time.monotonic() < end:
        time.sleep(0.01)
    until(lambda: re.search(r"INFO export small:1 opened by uid \d+: small@sha256:", server.said()))
    until(lambda: re.search(r"INFO export small@sha256:[0-9a-f]+ closed", server.said()))
    assert server.client.status()["exports"] == []


def test_control_answers_nonsense_with_an_error(server: Server) -> None:
    import socket

    for line in (
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"v":1,"op":"fly"}',
        b'{"v":1,"op":"resolve","export":"no:such"}',
        b"[" * 9999,
    ):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(server.socket) + ".ctl")
            connection.sendall(line + b"\n")
            answer = json.loads(connection.makefile("rb").readline())
            assert answer["ok"] is False
            assert answer["error"]
    assert server.client.answers()


def test_listens_on_tcp_and_warns(idle_server: Server, need: Callable[..., None]) -> None:
    need("nbdinfo")
    (port,) = free_ports(1)
    idle_server.start("--listen", f"127.0.0.1:{port}")
    out = subprocess.run(
        ["nbdinfo", "--size", f"nbd://127.0.0.1:{port}/small:1"], capture_output=True, text=True, check=True
    )
    assert int(out.stdout) == 16 << 30
    version = subprocess.run(["nbdkit", "--version"], capture_output=True, text=True).stdout
    old = [int(part) for part in re.findall(r"\d+", version)[:2]] < [1, 34]
    assert ("started again at once" in idle_server.said()) == old


def test_an_unused_server_ends_by_itself(idle_server: Server) -> None:
    idle_server.start("--idle-exit", "0.5")
    assert idle_server.process is not None
    assert idle_server.process.wait(30) == 0
    idle_server.process = None
    assert "nobody has used an export" in idle_server.said()
