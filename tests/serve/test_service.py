"""`blockmap serve` as systemd starts it: settings from a file, and word of when it serves and when it ends."""

import socket
from collections.abc import Callable
from pathlib import Path

from tests.serve.conftest import Server
from tests.waiting import free_ports, listens, until


def test_a_server_tells_systemd_when_it_serves_and_takes_its_settings_from_a_file(
    idle_server: Server, tmp_path: Path, need: Callable[..., None]
) -> None:
    (port,) = free_ports(1)
    (tmp_path / "blockmap.toml").write_text(f"""
store = "{idle_server.store}"
cache = "{idle_server.cache}"
cache_size = 123_000_000
socket = "{idle_server.socket}"
state = "{tmp_path}/state"
listen = "127.0.0.1:{port}"
outage = ["wait=90", "small:1=fail"]
learn = false
""")
    own = {name: value for name, value in idle_server.environment.items() if not name.startswith("BLOCKMAP_")}
    session = {"BLOCKMAP_TEST_SESSION": idle_server.environment["BLOCKMAP_TEST_SESSION"]}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        idle_server.environment = {
            **own, **session, "XDG_CONFIG_HOME": str(tmp_path), "NOTIFY_SOCKET": str(tmp_path / "notify"),
        }  # fmt: skip
        idle_server.start("--hydrate")
        ready = systemd.recv(4096).decode().splitlines()
        assert ready[0] == "READY=1"
        assert ready[1] == f"STATUS=serving {idle_server.store} on {idle_server.socket} and 127.0.0.1:{port}"
        assert listens(port)
        status = idle_server.client.status()
        assert status["cache"]["cap_bytes"] == 123_000_000
        words = Path(f"/proc/{idle_server.nbdkit()}/cmdline").read_text().split("\0")
        assert {"learn=off", "hydrate=on", "outage=wait=90", "outage=small:1=fail"} <= set(words)
        idle_server.stop()
        assert systemd.recv(4096) == b"STOPPING=1"


def test_a_server_with_nobody_to_tell_goes_on(idle_server: Server, tmp_path: Path) -> None:
    idle_server.environment["NOTIFY_SOCKET"] = str(tmp_path / "absent")
    idle_server.start()
    until(idle_server.client.answers)
    assert idle_server.stop() == 0
