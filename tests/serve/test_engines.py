"""Importing into object stores and serving from them and from a web server, by real nbdkit."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.control.messages import Resolve
from tests.serve.conftest import Server
from tests.serve.nbd import Nbd
from tests.serve.test_serve import data_ranges, stored
from tests.store import servers
from tests.waiting import until


def imported(server: Server, images: Path) -> str:
    """Imports small:1; returns its export by digest."""
    server.run("import", f"oci:{images}/1:1", "small:1", "--platform", "linux/amd64")
    return server.run("show", "small:1").stdout.split()[1]


def check(server: Server, truth: Server) -> None:
    """Every byte that `server` serves is what `truth` has in its directory."""
    read, nbd = stored(truth, "small:1"), Nbd(server.socket, "small:1")
    ranges = data_ranges(server, "small:1")
    assert sum(length for _, length in ranges) > 3 << 20
    for offset, length in ranges:
        for at in range(offset, offset + length, 1 << 20):
            size = min(1 << 20, offset + length - at)
            assert nbd.read(at, size) == read(at, size)
    nbd.close()


@pytest.fixture
def truth(images: Path, tmp_path: Path) -> Server:
    """A directory store with small:1, which is not served."""
    server = Server(tmp_path / "truth")
    imported(server, images)
    return server


@pytest.fixture
def started(tmp_path: Path, need: Callable[..., None]) -> Iterator[Callable[[str], Server]]:
    """started(url) serves the store at a URL."""
    need("nbdkit", "nbdinfo")
    made: list[Server] = []

    def start(url: str) -> Server:
        made.append(Server(tmp_path / f"server{len(made)}", url))
        made[-1].start()
        return made[-1]

    yield start
    for each in made:
        each.stop()


def test_an_object_store_is_imported_to_and_served(
    remote: str, images: Path, truth: Server, started: Callable[[str], Server], tmp_path: Path
) -> None:
    writer = Server(tmp_path / "writer", remote)
    assert imported(writer, images) == truth.run("show", "small:1").stdout.split()[1]
    writer.run("verify", "small:1", "--against", f"oci:{images}/1:1", "--platform", "linux/amd64")
    server = started(remote)
    check(server, truth)
    assert server.client.status()["store"] == remote
    out = subprocess.run(["nbdinfo", "--list", server.uri("")], capture_output=True, text=True, check=True)
    assert 'export="small:1"' in out.stdout
    writer.run("import", f"oci:{images}/2:2", "small:1", "--platform", "linux/amd64")
    moved = writer.run("show", "small:1").stdout.split()[1]
    # What the store confirmed a moment ago is not asked for again.
    until(lambda: server.client.ask(Resolve("small:1")).export == moved)


def test_keys_that_may_only_read_are_enough_to_serve(
    seaweedfs: servers.S3,
    images: Path,
    truth: Server,
    started: Callable[[str], Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers.use(seaweedfs, monkeypatch)
    url = seaweedfs.url()
    imported(Server(tmp_path / "writer", url), images)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.READ_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.READ_SECRET)
    server = started(url)
    check(server, truth)
    refused = server.run("import", f"oci:{images}/2:2", "small:2", "--platform", "linux/amd64", check=False)
    assert refused.returncode != 0
    assert "cannot write s3://" in refused.stderr
    assert "AccessDenied" in refused.stderr
    for text in (server.said(), refused.stderr):
        assert servers.READ_SECRET not in text


def test_a_web_server_is_enough_to_serve(
    need: Callable[..., None], truth: Server, images: Path, started: Callable[[str], Server], tmp_path: Path
) -> None:
    need("nginx")
    (tmp_path / "nginx").mkdir()
    with servers.nginx(tmp_path / "nginx", truth.store) as url:
        server = started(f"{url}/")
        check(server, truth)
        assert server.client.status()["store"] == url
        server.run("verify", "small:1")
        refused = server.run("import", f"oci:{images}/2:2", "small:2", "--platform", "linux/amd64", check=False)
        assert refused.returncode != 0
        assert f"{url}/ is read through a web server" in refused.stderr


def test_a_url_with_secrets_is_shown_nowhere(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", "s3://key:hunter2@host/bucket")
    for command in (["serve"], ["create"], ["images"], ["attach", "small:1", str(tmp_path / "mnt")]):
        done = server.run(*command, check=False)
        assert done.returncode != 0
        assert "credentials in the environment" in done.stderr
        assert "hunter2" not in done.stdout + done.stderr
