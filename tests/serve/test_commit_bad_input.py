"""Commits that cannot be: each is told clearly, and changes nothing; where the cause has gone, they succeed."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from blockmap.format import BLOCK, keys
from blockmap.format.refs import parse_reference
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves
from tests.serve.conftest import BLOCKMAP, Server, bare_server, content
from tests.serve.nbd import Nbd
from tests.waiting import LIMIT_S, until

SIZE = 1 << 20
DISK = content("disk", SIZE)


@contextmanager
def small_disk(where: Path, megabytes: int) -> Iterator[Path]:
    """A file system of so many megabytes."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts")
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def fill(where: Path) -> Path:
    """Leaves no byte free."""
    ballast = where / "ballast"
    with open(ballast, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(BLOCK))
    return ballast


@contextmanager
def serving(where: Path) -> Iterator[Server]:
    """A server with disk:1 and a clone of it, c, to which something was written."""
    with bare_server(where) as made:
        (made.where / "disk.raw").write_bytes(DISK)
        made.run("import", made.where / "disk.raw", "disk:1", "--quiet")
        made.start()
        made.run("clone", "disk:1", "c")
        write(made, b"mine")
        yield made


@pytest.fixture
def server(tmp_path: Path, need: Callable[..., None]) -> Iterator[Server]:
    need("nbdkit")
    with serving(tmp_path) as made:
        yield made


def write(server: Server, text: bytes, block: int = 0) -> None:
    with Nbd(server.socket, "c") as client:
        client.write(block * BLOCK, text * (BLOCK // len(text)))
        client.flush()


def stored(server: Server, name: str) -> bytes:
    repository, _ = server.volume(name)
    return stored_reader(repository, find_version(repository, parse_reference(name)).root)(0, SIZE)


def refused(server: Server, *arguments: str) -> str:
    done = server.run(*arguments, check=False)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def unpublished(server: Server) -> int:
    (row,) = json.loads(server.run("clones", "--json").stdout)
    count: int = row["unpublished"]
    return count


def names(server: Server) -> list[str]:
    return [row["name"] for row in json.loads(server.run("images", "--json").stdout)]


def test_a_base_that_has_gone_is_missed_and_may_come_back(server: Server) -> None:
    """Its pin was deleted by somebody, so that the version was collected with the name."""
    shutil.rmtree(server.store / "pins")
    server.run("untag", "disk:1")
    for _ in range(2):
        server.run("gc", "--keep", "0s", "--grace", "0s")
    said = refused(server, "commit", "c", "app:1")
    assert "has gone from" in said
    assert "import its image again" in said
    assert names(server) == []
    assert unpublished(server) == 1, "what was captured is kept"
    server.run("import", server.where / "disk.raw", "disk:1", "--quiet")
    server.run("commit", "c", "app:1", "--retry")
    assert stored(server, "app:1") == b"mine" * 1024 + DISK[BLOCK:]


@pytest.mark.parametrize(
    "name", ["", "APP:1", "app:", "app:a b", "app:1\n", "../app:1", "app:1@{2}", "app:1+x", "\x1b[31m:1"]
)
def test_an_odd_name_is_refused_before_anything_is_captured(server: Server, name: str) -> None:
    said = refused(server, "commit", "c", name)
    assert "is not " in said
    assert "\x1b" not in said
    assert unpublished(server) == 0


def test_a_store_that_cuts_otherwise_is_not_written_to(server: Server) -> None:
    """Somebody put a store of a later release in its place."""
    form = server.store / keys.FORMAT
    value = json.loads(form.read_bytes())
    value["chunker"]["hash"] = "blake3"
    before, mode = form.read_bytes(), form.stat().st_mode
    form.chmod(0o644)
    form.write_text(json.dumps(value))
    server.run("commit", "c", "app:1", "--wait", "local")
    until(lambda: "cuts by blake3, which this release does not know: upgrade blockmap" in server.said())
    assert not (server.store / keys.entry("app", "1", 1)).exists()
    form.write_bytes(before)
    form.chmod(mode)
    until(lambda: unpublished(server) == 0)
    assert stored(server, "app:1")[:BLOCK] == b"mine" * 1024


def test_a_store_with_other_chunks_gets_its_own(tmp_path: Path, need: Callable[..., None]) -> None:
    """The sizes of chunks are the store's; what is committed is cut as what is imported."""
    need("nbdkit")
    with bare_server(tmp_path) as server:
        server.run("create")
        form = server.store / keys.FORMAT
        value = json.loads(form.read_bytes())
        value["chunker"] |= {"bits": 2, "min": 2, "max": 8}
        form.chmod(0o644)
        form.write_text(json.dumps(value))
        (server.where / "disk.raw").write_bytes(DISK)
        server.run("import", server.where / "disk.raw", "disk:1", "--quiet")
        server.start()
        server.run("clone", "disk:1", "c")
        expected = bytearray(DISK)
        expected[: 64 * BLOCK] = new = content("new", 64 * BLOCK)
        with Nbd(server.socket, "c") as client:
            client.write(0, new)
        server.run("commit", "c", "disk:1")
        assert stored(server, "disk:1") == expected
        repository, _ = server.volume("disk:1")
        root = find_version(repository, parse_reference("disk:1")).root
        assert max(int(leaf.blocks.max()) for _, leaf in leaves(root, repository.packs.nodes)) <= 8


@pytest.mark.root
def test_no_room_for_a_capture_is_told_and_nothing_is_captured(tmp_path: Path, need: Callable[..., None]) -> None:
    need("nbdkit")
    with small_disk(tmp_path / "state", 8), serving(tmp_path) as server:
        ballast = fill(tmp_path / "state")
        said = refused(server, "commit", "c", "app:1")
        assert "no room left" in said
        ballast.unlink()
        assert unpublished(server) == 0
        assert names(server) == ["disk:1"]
        write(server, b"more", 1)
        server.run("commit", "c", "app:1")
        assert stored(server, "app:1") == b"mine" * 1024 + b"more" * 1024 + DISK[2 * BLOCK :]


@pytest.mark.root
def test_no_room_in_the_store_is_told_and_publishing_goes_on_later(tmp_path: Path, need: Callable[..., None]) -> None:
    need("nbdkit")
    with small_disk(tmp_path / "store", 8), serving(tmp_path) as server:
        ballast = fill(tmp_path / "store")
        process = subprocess.Popen(
            [*BLOCKMAP, "commit", "c", "app:1"], env=server.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )  # fmt: skip
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "captured, and published as soon as possible" in line
        assert "no room" in line or "No space" in line
        assert unpublished(server) == 1
        ballast.unlink()
        said, _ = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, "entry 1 of its name" in said) == (0, True)
        assert stored(server, "app:1") == b"mine" * 1024 + DISK[BLOCK:]


@pytest.fixture
def mounted(tmp_path: Path, need: Callable[..., None], need_root: None, images: Path) -> Iterator[tuple[Server, Path]]:
    """A server, and where c, a clone of small:1, is mounted."""
    need("nbdkit", "nbdfuse", "losetup")
    with bare_server(tmp_path) as server:
        server.run("import", f"oci:{images}/1:1", "small:1", "--platform", "linux/amd64")
        server.start()
        server.run("clone", "small:1", "c")
        where = tmp_path / "mnt"
        where.mkdir()
        server.run("attach", "c", where)
        try:
            yield server, where
        finally:
            server.run("detach", where)


@pytest.mark.root
def test_committers_at_a_mounted_clone_freeze_it_one_after_the_other(mounted: tuple[Server, Path]) -> None:
    server, where = mounted
    (where / "new").write_text("new")
    commands = [[*BLOCKMAP, "commit", "c", f"app:{number}"] for number in range(3)]
    processes = [
        subprocess.Popen(command, env=server.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for process in processes:
        _, said = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, said
    assert {"app:0", "app:1", "app:2"} <= set(names(server))
