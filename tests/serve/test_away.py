"""A server whose store goes away: what was read before is served from the cache, also by a server that starts then."""

import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from blockmap.control.messages import Resolve
from tests.serve.conftest import Server
from tests.serve.nbd import Nbd, RefusedError
from tests.serve.test_serve import stored
from tests.store import servers
from tests.waiting import until

STEP = 4 << 20
END = 60 << 20


def read_all(server: Server, export: str) -> list[bytes]:
    with Nbd(server.socket, export) as nbd:
        return [nbd.read(offset, STEP) for offset in range(0, END, STEP)]


def listed(server: Server) -> str:
    return subprocess.run(["nbdinfo", "--list", server.uri("")], capture_output=True, text=True, check=True).stdout


def test_exports_open_from_the_cache_while_the_store_is_away(server: Server, need: Callable[..., None]) -> None:
    need("nbdinfo")
    read = stored(server, "small:1")
    good = [read(offset, STEP) for offset in range(0, END, STEP)]
    pinned = server.client.ask(Resolve("small:1")).export
    assert read_all(server, "small:1") == good
    away = server.where / "away"

    server.store.rename(away)
    assert read_all(server, "small:1") == good
    assert server.client.status()["unconfirmed_opens"] == 1

    assert server.stop() == 0
    server.start()
    until(lambda: "the store is away, this host serves what it knows of it" in server.said())
    for export in ("small:1", pinned, ""):
        assert read_all(server, export) == good
    assert 'export="small:1"' in listed(server)
    with pytest.raises(RefusedError):
        Nbd(server.socket, "small:2")
    until(lambda: "small:1 is opened as it was last seen here, entry 1: there is no store at" in server.said())

    away.rename(server.store)
    asked = server.client.status()["unconfirmed_opens"]
    assert read_all(server, "small:1") == good
    assert server.client.status()["unconfirmed_opens"] == asked


def test_a_server_of_a_store_that_it_never_saw_does_not_start(idle_server: Server) -> None:
    idle_server.store.rename(idle_server.where / "away")
    done = idle_server.run("serve", check=False)
    assert done.returncode == 1
    assert "is not a blockmap store" in done.stderr


def test_an_empty_mount_point_is_a_store_that_is_away(server: Server) -> None:
    good = read_all(server, "small:1")
    server.store.rename(server.where / "away")
    server.store.mkdir()
    assert read_all(server, "small:1") == good
    assert server.stop() == 0
    server.start()
    assert read_all(server, "small:1") == good
    assert list(server.store.iterdir()) == []


def test_a_web_server_that_ends_is_a_store_that_is_away(
    need: Callable[..., None], images: Path, tmp_path: Path
) -> None:
    need("nbdkit", "nbdinfo", "nginx")
    writer = Server(tmp_path / "writer")
    writer.run("import", f"oci:{images}/1:1", "small:1", "--platform", "linux/amd64")
    (tmp_path / "nginx").mkdir()
    with ExitStack() as stack:
        url = stack.enter_context(servers.nginx(tmp_path / "nginx", writer.store))
        server = Server(tmp_path / "server", url)
        server.start()
        try:
            good = read_all(server, "small:1")
            assert 'export="small:1"' in listed(server), "web servers cannot list, the catalogue is an object"
            stack.close()
            assert read_all(server, "small:1") == good
            assert server.stop() == 0
            server.start()
            assert read_all(server, "small:1") == good
            assert server.client.status()["unconfirmed_opens"] == 1
            assert 'export="small:1"' in listed(server)
        finally:
            assert server.stop() == 0
