"""A server with --trust behind a web server: what clients of NBD can open, what commands say, and what mends a refusal."""

import json
import subprocess
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from blockmap.api.server import find_server
from blockmap.control.messages import Resolve
from blockmap.errors import HostError, Untrusted
from blockmap.format.refs import parse_reference
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from tests.serve.conftest import Server, bare_server
from tests.serve.nbd import Nbd, RefusedError
from tests.serve.test_serve import stored
from tests.store import servers
from tests.waiting import until

END = 4 << 20


def version_of(server: Server, name: str) -> tuple[str, str]:
    """Returns the digests of the version and of the manifest of a name."""
    found = find_version(Repository(open_store(str(server.store))[0]), parse_reference(name))
    assert found.version.manifest is not None
    return found.name.hex(), sha256(found.version.manifest).hexdigest()


@pytest.fixture
def web(idle_server: Server, images: Path, tmp_path: Path, need: Callable[..., None]) -> Iterator[Server]:
    """A server that has not been started, of a store behind nginx: small:1 is not signed, small:2 is."""
    need("nginx")
    idle_server.run("key", "create", tmp_path / "key")
    idle_server.run("import", f"oci:{images}/2:2", "small:2", "--platform", "linux/amd64", "--sign", tmp_path / "key")
    (tmp_path / "nginx").mkdir()
    with servers.nginx(tmp_path / "nginx", idle_server.store) as url, bare_server(tmp_path / "host") as host:
        host.store = idle_server.store
        host.environment["BLOCKMAP_STORE"] = url
        yield host


def test_only_signed_images_are_served(web: Server, images: Path, tmp_path: Path, need: Callable[..., None]) -> None:
    need("nbdinfo")
    key = tmp_path / "key.pub"
    web.start("--trust", str(key))
    unsigned = version_of(web, "small:1")
    for export in ("small:2", *(f"small@sha256:{digest}" for digest in version_of(web, "small:2")), ""):
        with Nbd(web.socket, export) as nbd:
            assert nbd.read(0, END) == stored(web, "small:2")(0, END)
    for export in ("small:1", "small:1+other", *(f"small@sha256:{digest}" for digest in unsigned)):
        with pytest.raises(RefusedError):
            Nbd(web.socket, export)
        if "@" not in export:  # of many failures that are alike a few are logged
            until(lambda export=export: f"export '{export}' was refused: " in web.said())
    until(lambda: "entry 1 of small:1 is not signed, and only what key " in web.said())
    listed = subprocess.run(["nbdinfo", "--list", web.uri("")], capture_output=True, text=True, check=True).stdout
    assert ('export="small:2"' in listed, "small:1" in listed) == (True, False)
    with pytest.raises(Untrusted, match="entry 1 of small:1 is not signed"):
        web.client.ask(Resolve("small:1"))

    web.environment["BLOCKMAP_TRUST"] = str(key)
    (shown,) = json.loads(web.run("key", "list", "--json").stdout)
    assert web.client.status()["trust"] == [shown["key"]]
    assert f"opens only what is signed with {shown['key']}" in web.run("status").stdout
    for command in ("show", "verify"):
        done = web.run(command, "small:1", check=False)
        assert (done.returncode, "entry 1 of small:1 is not signed" in done.stderr) == (1, True)
        web.run(command, "small:2")

    writer = {**web.environment, "BLOCKMAP_STORE": str(web.store), "BLOCKMAP_SIGN": str(tmp_path / "key")}
    web.environment = writer
    web.run("import", f"oci:{images}/1:1", "small:1", "--platform", "linux/amd64")
    for export in ("small:1", f"small@sha256:{unsigned[0]}"):
        with Nbd(web.socket, export) as nbd:
            assert nbd.read(0, END) == stored(web, "small:1")(0, END)


def test_commands_use_no_server_that_opens_more_than_they_trust(web: Server, tmp_path: Path) -> None:
    web.run("key", "create", tmp_path / "other")
    ours, other = str(tmp_path / "key.pub"), str(tmp_path / "other.pub")
    store = web.environment["BLOCKMAP_STORE"]
    web.start("--trust", ours)
    for trust in ((), (ours,), (ours, other)):
        find_server(store, None, web.socket, trust)
    with pytest.raises(
        HostError, match=r"opens what [0-9a-f]{16} signed, not only what [0-9a-f]{16} signed: restart it"
    ):
        find_server(store, None, web.socket, (other,))
    web.stop()
    web.start()
    with pytest.raises(HostError, match="opens all, not only what"):
        find_server(store, None, web.socket, (ours,))
