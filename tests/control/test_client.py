"""Clients of servers that are not of their release."""

import json
import socket
import threading
from pathlib import Path

import pytest

from blockmap.control.client import Client
from blockmap.errors import HostError
from blockmap.local.paths import control_socket

OLDER = {"ok": True, "v": 1, "pid": 1, "started": 0.0, "seconds": 1.0, "store": "/s", "asked": 3, "unconfirmed": 0}


def test_a_server_of_another_release_is_called_that(tmp_path: Path) -> None:
    """Its store is known all the same, which is what `attach` needs."""
    client = Client(tmp_path / "nbd.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(control_socket(client.nbd_socket)))
        listening.listen()

        def answer() -> None:
            for _ in range(2):
                connection, _ = listening.accept()
                with connection, connection.makefile("rb") as lines:
                    lines.readline()
                    connection.sendall(json.dumps(OLDER).encode() + b"\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        assert client.status()["store"] == "/s"
        with pytest.raises(HostError, match="of another release"):
            client.full_status()
        thread.join(10)
