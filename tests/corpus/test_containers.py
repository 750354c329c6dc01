"""Programs of the corpus as containers that go on: ready as they say, reached by a published port, entered, stopped."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.corpus.starts import near
from tests.host.box import listed
from tests.host.conftest import Host
from tests.waiting import LIMIT_S, free_ports

pytestmark = [pytest.mark.long, pytest.mark.root]


@pytest.mark.parametrize(
    ("image", "ready", "port", "statuses"),
    [
        ("redis:1", "tcp:6379", 6379, [0]),
        ("nginx:1", "http:80", 80, [0]),
        ("haproxy:1", "http:8080", 8080, [0, 143]),
        # Its first process is a shell without a handler, as with docker: it is ended by force.
        ("php-apache:1", "http:80", 80, [137]),
        ("postgres:1", "text:database system is ready to accept connections", 5432, [0, 137, 143]),
    ],
)
def test_a_server_from_its_start_to_its_end(
    corpus: Path,
    where: Path,
    image: str,
    ready: str,
    port: int,
    statuses: list[int],
    need: Callable[..., None],
    need_root: None,
) -> None:
    need("nbdkit", "nbdfuse", "losetup", "runc", "pasta")
    (outer,) = free_ports(1)
    importing = Host(where / "import")
    importing.do("create")
    importing.do("import", "--quiet", f"oci:{corpus}/{image}", image)
    with near(where / "host", importing.store) as host:
        published = ["-p", f"127.0.0.1:{outer}:{port}"]
        host.do("run", "-d", "--name", "it", *published, "--memory", "1g", "--ready", ready, image)
        try:
            socket.create_connection(("127.0.0.1", outer), timeout=LIMIT_S).close()
            assert "1" in host.do("exec", "it", "sh", "-c", "echo /proc/[0-9]*")
        finally:
            host.do("stop", "it")
        found = listed(host, "it")
        assert found is not None
        assert found.status in statuses, host.do("logs", "it")
        host.do("rm", "it")
        assert host.leftovers() == []
